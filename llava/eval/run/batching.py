"""Forms batches of prompts of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if not 0 < self.waste <= 1:
            raise ValueError(f"waste is {self.waste}; it must be above 0 and at most 1")


def form_batches(lengths: Sequence[int], limits: BatchLimits) -> list[list[int]]:
    """Groups indices into batches of similar length, longest first; a batch ends where the next prompt would not fit.

    Args:
        lengths: tokens of each prompt, at least 1.
        limits: bounds of each batch.
    """
    batches: list[list[int]] = []
    real = 0  # tokens of the last batch, without padding
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches:
            rows, width = len(batches[-1]) + 1, lengths[batches[-1][0]]
            padding = 1 - (real + lengths[index]) / (rows * width)
            if rows <= limits.rows and rows * width <= limits.tokens and padding < limits.waste:
                batches[-1].append(index)
                real += lengths[index]
                continue
        batches.append([index])
        real = lengths[index]
    return batches
