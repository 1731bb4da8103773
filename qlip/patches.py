"""Leaves -> patches of one size, and ragged sequences -> a padded batch. Knows nothing of positions or models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qlip.quadtree import Leaves, grid_of


def extract_patches(image: Tensor, leaves: Leaves, patch_size: int = 14) -> Tensor:
    """Resamples every leaf's own pixels to one patch: antialiased bilinear, `align_corners=False` (paper section 3.1).

    Args:
        image: float (C, H, W), normalised.
        leaves: N leaves of that image.
        patch_size: P, pixels per side.

    Returns:
        (N, C, P, P), dtype and device of `image`; leaves of one cell are copied unchanged.

    Raises:
        ValueError: the image's grid is not the leaves' grid.
    """
    grid = grid_of(image, patch_size)
    if grid != tuple(leaves.grid):
        raise ValueError(f"the image has a grid of {grid} cells, its leaves one of {tuple(leaves.grid)}")
    cells = image.unflatten(2, (-1, patch_size)).unflatten(1, (-1, patch_size))  # (C, rows, P, cols, P)
    cells = cells.permute(1, 3, 0, 2, 4).flatten(0, 1)  # (rows * cols, C, P, P), the one copy of all pixels
    row, col, sizes = leaves.boxes.unbind(1)
    patches = cells.index_select(0, (row * grid[1] + col).to(image.device))  # right for leaves of one cell
    for size in sizes[sizes > 1].unique().tolist():
        chosen = (sizes == size).nonzero()[:, 0]
        blocks = _gather_blocks(cells, leaves.boxes[chosen], grid[1])
        out = (patch_size, patch_size)
        resampled = F.interpolate(blocks.float(), out, mode="bilinear", antialias=True)  # a CPU knows no half here
        patches[chosen.to(image.device)] = resampled.to(image.dtype)
    return patches


def thumbnail_patches(image: Tensor, native_grid: int, patch_size: int = 14) -> Tensor:
    """The patches (n * n, C, P, P) of an image (C, H, W) squeezed to the native size, as CLIP sees it."""
    side = (native_grid * patch_size,) * 2
    small = F.interpolate(image[None], side, mode="bicubic", antialias=True)[0]
    return extract_patches(small, Leaves.uniform((native_grid, native_grid)), patch_size)


def pad_ragged(sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pads sequences of (N_i, ...) with zeros behind.

    Returns:
        The batch (B, max N_i, ...), and `valid`, bool (B, max N_i), True where a token stands.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    valid = torch.arange(int(lengths.max())) < lengths[:, None]
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True), valid.to(sequences[0].device)


def _gather_blocks(cells: Tensor, boxes: Tensor, cols: int) -> Tensor:
    """The pixels (n, C, size P, size P) of n leaves of one size, from the cells (rows * cols, C, P, P) of an image."""
    size = int(boxes[0, 2])
    inside = torch.arange(size)
    rows = boxes[:, 0, None, None] + inside[:, None]  # (n, size, 1)
    places = rows * cols + boxes[:, 1, None, None] + inside  # (n, size, size)
    blocks = cells.index_select(0, places.flatten().to(cells.device)).unflatten(0, places.shape)
    blocks = blocks.permute(0, 3, 1, 4, 2, 5)  # (n, C, size, P, size, P)
    return blocks.flatten(4, 5).flatten(2, 3)
