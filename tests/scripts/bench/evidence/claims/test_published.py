"""The file of published claims."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.bench.evidence.answering.scene_sets import MEASURES, SCENE_SETS
from scripts.bench.evidence.claims.published import read_claims, write_claims
from tests.scripts.bench.evidence.rows import claim


def test_every_claim_is_of_a_known_set_and_has_its_command() -> None:
    claims = read_claims()
    assert len({(c.set, c.way, c.measure) for c in claims}) == len(claims)
    for item in claims:
        assert item.set in SCENE_SETS
        assert item.command.startswith("python -m scripts.bench.evidence.run ")
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", item.date)
        assert len(item.scenes) == len(MEASURES[item.measure]) + 1
        assert item.low is None or item.high is not None and item.low <= item.value <= item.high


def test_the_shipped_share_is_that_of_the_counts() -> None:
    assert claim(scenes=(10, 90)).shipped.mean == 90
    assert claim(measure="V*", scenes=(0, 1, 0, 3)).shipped.mean == pytest.approx(100 * (1 + 9) / 12)


def test_a_file_of_claims_reads_as_it_was_written(tmp_path: Path) -> None:
    write_claims([claim(), claim(low=None, high=None)], tmp_path / "claims.json")
    assert read_claims(tmp_path / "claims.json") == [claim(), claim(low=None, high=None)]
    (tmp_path / "other.json").write_text("[{}]")
    with pytest.raises(ValueError, match="other.json is not a file of claims"):
        read_claims(tmp_path / "other.json")
    write_claims([claim(way="ours")], tmp_path / "claims.json")
    with pytest.raises(ValueError, match="'ours'.*CLIP"):
        read_claims(tmp_path / "claims.json")
