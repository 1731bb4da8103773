"""Which cells an experiment has."""

from __future__ import annotations

import pytest

from scripts.bench.evidence.run import cells


def test_ways_are_chosen_by_name() -> None:
    assert {(way.name, name) for way, name in cells(["geometry"], ["base"], [], ["CLIP"])} == {("CLIP", "base")}
    with pytest.raises(ValueError, match="no way 'clip'; their ways are CLIP; grid"):
        cells(["geometry"], [], [], ["clip"])
