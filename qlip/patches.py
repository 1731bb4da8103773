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
    patches = image.new_empty(len(leaves), image.shape[0], patch_size, patch_size)
    for size in leaves.sizes.unique().tolist():
        chosen = (leaves.sizes == size).nonzero()[:, 0]
        row, col = leaves.boxes[chosen, 0], leaves.boxes[chosen, 1]
        blocks = _gather_blocks(image, row, col, size, patch_size)
        if size > 1:
            size_out = (patch_size, patch_size)  # in float32, since the CPU resamples no half precision
            blocks = F.interpolate(blocks.float(), size_out, mode="bilinear", antialias=True).to(image.dtype)
        patches[chosen.to(image.device)] = blocks
    return patches


def pad_ragged(sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pads sequences of (N_i, ...) with zeros behind.

    Returns:
        The batch (B, max N_i, ...), and `valid`, bool (B, max N_i), True where a token stands.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    valid = torch.arange(int(lengths.max())) < lengths[:, None]
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True), valid.to(sequences[0].device)


def _gather_blocks(image: Tensor, row: Tensor, col: Tensor, size: int, patch_size: int) -> Tensor:
    """The pixels (n, C, size P, size P) of n square blocks given by their top-left cells."""
    cells = image.unflatten(2, (-1, patch_size)).unflatten(1, (-1, patch_size))  # (C, rows, P, cols, P)
    cells = cells.permute(1, 3, 0, 2, 4)  # (rows, cols, C, P, P)
    inside = torch.arange(size)
    rows = (row[:, None] + inside).to(image.device)[:, :, None]  # (n, size, 1)
    cols = (col[:, None] + inside).to(image.device)[:, None, :]  # (n, 1, size)
    blocks = cells[rows, cols]  # (n, size, size, C, P, P)
    side = size * patch_size
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(len(row), -1, side, side)
