"""Means with intervals, against scipy and textbook formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from qlip.tools.intervals import mean_interval


def normal(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(5, 2, count)


@pytest.mark.parametrize("count", [100, 3000])
def test_of_normal_values_it_is_the_t_interval(count):
    values = normal(count)
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    ours = mean_interval(values)
    assert ours.mean == pytest.approx(values.mean()) and ours.count == count
    assert ours.low == pytest.approx(low, abs=0.05 * (high - low))
    assert ours.high == pytest.approx(high, abs=0.05 * (high - low))


def test_of_skewed_values_it_is_scipys_percentile_bootstrap():
    values = np.random.default_rng(1).exponential(1, 60)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=0).confidence_interval
    ours = mean_interval(values)
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)


def test_the_true_mean_lies_inside_about_as_often_as_promised():
    intervals = [mean_interval(normal(50, seed), resamples=500) for seed in range(300)]
    covered = np.mean([interval.low <= 5 <= interval.high for interval in intervals])
    assert 0.90 <= covered <= 0.98


def test_values_repeated_within_their_groups_tell_no_more_than_once():
    values = normal(40)
    once = mean_interval(values)
    repeated = np.repeat(values, 9)
    grouped = mean_interval(repeated, np.repeat(np.arange(40), 9))
    assert (grouped.low, grouped.high) == pytest.approx((once.low, once.high))
    assert grouped.count == 360
    ungrouped = mean_interval(repeated)
    assert (ungrouped.high - ungrouped.low) * 2 < grouped.high - grouped.low


def test_the_mean_is_over_values_whatever_the_size_of_their_groups():
    estimate = mean_interval([1, 1, 1, 5], ["a", "a", "a", "b"])
    assert estimate.mean == 2
    assert (estimate.low, estimate.high) == (1, 5)


def test_names_of_groups_and_their_order_do_not_matter():
    values, names = normal(6), ["a", "b", "a", "c", "b", "c"]
    assert mean_interval(values, names) == mean_interval(values, [f"{name}.png" for name in names])


def test_one_value_has_an_interval_of_no_width():
    estimate = mean_interval([0.25])
    assert (estimate.mean, estimate.low, estimate.high, estimate.count) == (0.25, 0.25, 0.25, 1)


def test_the_draws_follow_the_seed():
    values = normal(30)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3) != mean_interval(values, seed=4)


@pytest.mark.parametrize(
    ("values", "groups", "message"),
    [
        ([], None, r"shape \(0,\)"),
        ([[1.0, 2.0]], None, r"shape \(1, 2\)"),
        ([1.0, float("nan")], None, "finite numbers, got nan"),
        ([1.0, float("inf")], None, "finite numbers, got inf"),
        ([1.0, 2.0], ["a"], "2 values, but 1 groups"),
        ([1.0], [], "1 values, but 0 groups"),
    ],
)
def test_what_has_no_mean_is_refused(values, groups, message):
    with pytest.raises(ValueError, match=message):
        mean_interval(values, groups)
