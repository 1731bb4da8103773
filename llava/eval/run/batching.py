"""Forms batches of prompts of similar length."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from qlip.config import check_count, check_number


@dataclass(frozen=True)
class BatchLimits:
    """Bounds of a batch."""

    rows: int = 32
    """Most prompts."""

    tokens: int = 16384
    """Most tokens, padding included; a longer prompt goes alone."""

    waste: float = 0.1
    """Share of a batch's tokens that padding must stay below, in (0, 1]."""

    def __post_init__(self) -> None:
        for name in ("rows", "tokens"):
            check_count(name, getattr(self, name))
        check_number("waste", self.waste)
        if not 0 < self.waste <= 1:
            raise ValueError(f"waste is {self.waste}; it must be above 0 and at most 1")


def form_batches(
    lengths: Sequence[int], limits: BatchLimits, groups: Sequence[Hashable] | None = None
) -> list[list[int]]:
    """Groups indices into batches of similar length, longest first; a batch ends where the next prompt would not fit.

    Args:
        lengths: tokens of each prompt, at least 1.
        limits: bounds of each batch.
        groups: of each prompt; those of equal groups follow each other, as if they were as long as their longest.
            By default each prompt has its own.
    """
    groups = range(len(lengths)) if groups is None else groups
    longest: dict[Hashable, int] = {}
    first: dict[Hashable, int] = {}
    for index, (length, group) in enumerate(zip(lengths, groups, strict=True)):
        longest[group] = max(length, longest.get(group, 0))
        first.setdefault(group, index)
    order = sorted(range(len(lengths)), key=lambda i: (-longest[groups[i]], first[groups[i]], -lengths[i]))
    batches: list[list[int]] = []
    real = width = 0  # tokens of the last batch without padding, and of its longest prompt
    for index in order:
        if batches:
            rows, wider = len(batches[-1]) + 1, max(width, lengths[index])
            padding = 1 - (real + lengths[index]) / (rows * wider)
            if rows <= limits.rows and rows * wider <= limits.tokens and padding < limits.waste:
                batches[-1].append(index)
                real, width = real + lengths[index], wider
                continue
        batches.append([index])
        real = width = lengths[index]
    return batches
