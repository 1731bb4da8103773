"""Means with 95 % intervals, by the bootstrap over groups."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float
    count: int
    """Number of values."""


def mean_interval(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Computes the mean of some values with a percentile bootstrap interval; for a single group its width is 0.

    Args:
        values: V finite numbers, at least one.
        groups: the group of each value (for example the image of a question). Whole groups are drawn, since values of
            one group are not independent; None makes every value its own group.
        resamples: number of bootstrap draws.
        seed: of the draws.

    Raises:
        ValueError: no values, one that is not finite, or another number of groups.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"an interval needs a list of numbers, got an array of shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"an interval needs finite numbers, got {numbers[~np.isfinite(numbers)][0]}")
    if groups is not None and len(groups) != len(numbers):
        raise ValueError(f"{len(numbers)} values, but {len(groups)} groups")
    keys: dict[Hashable, int] = {}
    owner = np.array([keys.setdefault(key, len(keys)) for key in (range(len(numbers)) if groups is None else groups)])
    sums = np.bincount(owner, numbers)
    counts = np.bincount(owner)
    draws = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), resamples)
    low, high = np.quantile(draws @ sums / (draws @ counts), (0.025, 0.975))
    return Estimate(float(numbers.mean()), float(low), float(high), len(numbers))
