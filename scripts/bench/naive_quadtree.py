"""The quadtree as one would first write it: recursion over blocks, each scored from its pixels. The bench's peer.

It does the same work as `qlip.partition` and `qlip.extract_patches` for criterion "gradient" and layout "aligned",
with torch on every block; it knows no budget.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Box = tuple[int, int, int]


def naive_partition(image: Tensor, patch_size: int, alpha: float) -> list[Box]:
    """Leaves as (row, col, size) in cells, in raster order.

    Args:
        image: float (C, H, W), normalised; H and W multiples of `patch_size`.
        patch_size: pixels per side of a cell.
        alpha: split threshold.
    """
    rows, cols = image.shape[1] // patch_size, image.shape[2] // patch_size
    root = max(1, (1 << min(rows, cols).bit_length()) >> 2)
    leaves: list[Box] = []
    for row in range(0, rows, root):
        for col in range(0, cols, root):
            _split(image, patch_size, alpha, (rows, cols), (row, col, root), leaves)
    return sorted(leaves)


def naive_patches(image: Tensor, leaves: list[Box], patch_size: int) -> Tensor:
    """(N, C, P, P): one resampling per leaf."""
    shape = (patch_size, patch_size)
    patches = []
    for box in leaves:
        pixels = _pixels(image, box, patch_size)
        if box[2] > 1:
            pixels = F.interpolate(pixels[None], shape, mode="bilinear", antialias=True)[0]
        patches.append(pixels)
    return torch.stack(patches)


def _split(image: Tensor, patch_size: int, alpha: float, grid: tuple[int, int], box: Box, leaves: list[Box]) -> None:
    row, col, size = box
    if row >= grid[0] or col >= grid[1]:
        return
    inside = row + size <= grid[0] and col + size <= grid[1]
    if inside and (size == 1 or _gradient(_pixels(image, box, patch_size)) < alpha):
        leaves.append(box)
        return
    half = size // 2
    for child in ((row, col), (row, col + half), (row + half, col), (row + half, col + half)):
        _split(image, patch_size, alpha, grid, (*child, half), leaves)


def _gradient(pixels: Tensor) -> float:
    """Largest |d/drow| + |d/dcol| over channels and pixels; differences beyond the block count as zero."""
    steps = torch.zeros_like(pixels)
    steps[:, :-1] += (pixels[:, 1:] - pixels[:, :-1]).abs()
    steps[:, :, :-1] += (pixels[:, :, 1:] - pixels[:, :, :-1]).abs()
    return steps.max().item()


def _pixels(image: Tensor, box: Box, patch_size: int) -> Tensor:
    row, col, size = (patch_size * value for value in box)
    return image[:, row : row + size, col : col + size]
