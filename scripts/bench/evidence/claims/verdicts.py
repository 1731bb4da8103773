"""Whether new answers agree with a claim, by an interval of their difference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.bench.evidence.claims.published import Claim

RESAMPLES = 20_000
"""Draws of the bootstrap."""


@dataclass(frozen=True)
class Verdict:
    """New answers held against a claim."""

    claim: Claim
    found: float
    """Share of right answers in %."""
    low: float
    """Of the interval of the new share minus the claimed one, at the level that was asked for."""
    high: float

    @property
    def covers(self) -> bool:
        """Whether the interval covers no difference."""
        return self.low <= 0 <= self.high


def count_scenes(row: Mapping[str, Any], kinds: Iterable[str]) -> tuple[int, ...]:
    """Counts the scenes with 0, 1, ... right answers to questions of some kinds, in one checkpoint's line of answers.

    Raises:
        ValueError: scenes have different numbers of such questions.
    """
    right: dict[int, list[int]] = {}
    for kind in kinds:
        for mark, scene in zip(row["right"][kind], row["pictures"][kind], strict=True):
            right.setdefault(scene, []).append(int(mark))
    asked = {len(marks) for marks in right.values()}
    if len(asked) != 1:
        raise ValueError(f"scenes of the set {row['set']!r} have {sorted(asked)} questions; all must have as many")
    counts = np.bincount([sum(marks) for marks in right.values()], minlength=asked.pop() + 1)
    return tuple(counts.tolist())


def difference_interval(new: Sequence[int], old: Sequence[int], level: float, seed: int = 0) -> tuple[float, float]:
    """Computes the interval of the difference of two shares in %, by the bootstrap over the scenes of both samples.

    One scene with all answers right and one with none are added to each sample, as Agresti and Caffo (2000) add
    successes and failures: without them the interval of a share of 100 % would have no width.

    Args:
        new: scenes with 0, 1, ... right answers.
        old: the same of the other sample.
        level: of the interval, such as 0.95.
        seed: of the draws.
    """
    rng, shares = np.random.default_rng(seed), []
    for sample in (new, old):
        counts = np.array(sample)
        counts[[0, -1]] += 1
        total = counts.sum()
        draws = rng.multinomial(total, counts / total, RESAMPLES)
        shares.append(draws @ np.linspace(0, 100, len(counts)) / total)
    low, high = np.quantile(shares[0] - shares[1], ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def judge(claim: Claim, scenes: Sequence[int], level: float) -> Verdict:
    """Holds new answers, counted by `count_scenes`, against what the shipped checkpoint got."""
    found = 100 * sum(right * count for right, count in enumerate(scenes)) / ((len(scenes) - 1) * sum(scenes))
    return Verdict(claim, found, *difference_interval(scenes, claim.scenes, level))
