"""New answers are held against claims fairly."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.bench.evidence.answering.scene_sets import MEASURES
from scripts.bench.evidence.claims.verdicts import count_scenes, difference_interval, judge
from tests.scripts.bench.evidence.rows import claim


def test_scenes_are_counted_by_their_right_answers() -> None:
    row = {
        "set": "base",
        "right": {"colour": "110", "shape": "100", "relation": "101"},
        "pictures": dict.fromkeys(("colour", "shape", "relation"), [0, 1, 2]),
    }
    assert count_scenes(row, MEASURES["V*"]) == (0, 2, 0, 1)
    row["pictures"]["shape"] = [0, 0, 2]
    with pytest.raises(ValueError, match=r"'base'.*\[2, 3, 4\]"):
        count_scenes(row, MEASURES["V*"])


def test_an_interval_of_differences_has_its_level() -> None:
    """Two samples of one truth: the interval covers no difference about as often as it says, at 90 % and near 100 %."""
    rng = np.random.default_rng(5)
    for truth in (0.9, 0.985):
        covered = 0
        for seed in range(100):
            samples = [np.bincount(rng.binomial(1, truth, size), minlength=2) for size in (60, 100)]
            low, high = difference_interval(*(sample.tolist() for sample in samples), level=0.9, seed=seed)
            covered += low <= 0 <= high
        assert covered >= 0.85 * 100


def test_a_difference_is_found_where_there_is_one() -> None:
    verdict = judge(claim(scenes=(10, 90)), (30, 30), 0.99)
    assert (verdict.found, verdict.covers) == (50.0, False)
    assert verdict.low < 50 - 90 < verdict.high < 0
    assert judge(claim(scenes=(0, 100)), (0, 60), 0.95).covers
    assert judge(claim(scenes=(1, 99)), (0, 60), 0.95).covers
