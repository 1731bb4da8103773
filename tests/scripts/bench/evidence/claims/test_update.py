"""New values for the published claims."""

from __future__ import annotations

import pytest

from scripts.bench.evidence.answering.answers import Cell
from scripts.bench.evidence.claims.__main__ import update
from tests.scripts.bench.evidence.rows import claim, claimed_row


def test_values_are_updated_from_all_checkpoints_and_counts_from_the_shipped_one() -> None:
    cell = Cell([claimed_row("CLIP", "seed 1", "1110"), claimed_row("CLIP", "seed 2", "1000")])
    untouched = claim(set="large")
    first, second = update([claim(), untouched], {("base", "CLIP"): cell}, "seed 1", date="2026-02-02")
    assert (first.value, first.scenes, first.checkpoints, first.date) == (50.0, (1, 3), 2, "2026-02-02")
    assert second == untouched
    with pytest.raises(ValueError, match="'seed 3'.*'seed 1', 'seed 2'"):
        update([claim()], {("base", "CLIP"): cell}, "seed 3")
