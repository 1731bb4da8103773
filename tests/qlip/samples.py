"""Helpers of the quadtree's tests: names of its options, uneven images, leaves as tuples."""

from __future__ import annotations

from typing import Any

import torch

import qlip

CRITERIA = ("gradient", "structure", "objects", "variance", "diagonal", "random")
LAYOUTS = ("aligned", "centered")


def patchwork(grid: tuple[int, int], patch_size: int = 4, seed: int = 0, channels: int = 3) -> torch.Tensor:
    """Noise whose strength changes from cell to cell over orders of magnitude, so that trees are uneven."""
    generator = torch.Generator().manual_seed(seed)
    strength = torch.exp(2 * torch.randn(grid, generator=generator))
    strength = strength.repeat_interleave(patch_size, 0).repeat_interleave(patch_size, 1)
    return strength * torch.randn(channels, *strength.shape, generator=generator)


def paper_partition(image: torch.Tensor, patch_size: int, **options: Any) -> qlip.Leaves:
    """`qlip.partition` by the paper's rule, "gradient" without a budget or a native bound, at alpha 0."""
    rule = {"alpha": 0.0, "criterion": "gradient", "max_tokens": None, "coarsest": "any", "structure_size": 7}
    rule["split_order"] = "score"
    return qlip.partition(image, patch_size, **{**rule, **options})


def as_tuples(leaves: qlip.Leaves) -> list[tuple[int, ...]]:
    return [tuple(box) for box in leaves.boxes.tolist()]
