"""Leaves -> patches of one size, and ragged sequences -> a padded batch. Knows nothing of positions or models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qlip.quadtree import Leaves, grid_of


@dataclass(frozen=True, eq=False)
class CutImage:
    """All that a tower needs to know of an image: its leaves and their pixels."""

    leaves: Leaves
    """N leaves."""

    patches: Tensor
    """float (N, C, P, P), as `extract_patches` gives them."""

    thumbnail: Tensor | None = None
    """float (C, S, S): the image at the tower's native size, where the settings ask for it."""

    def to(self, device: torch.device | str) -> CutImage:
        """The same with its pixels on a device; leaves stay on the CPU."""
        small = None if self.thumbnail is None else self.thumbnail.to(device)
        return CutImage(self.leaves, self.patches.to(device), small)


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


def downsize(image: Tensor, side: int) -> Tensor:
    """The whole image (C, H, W), squeezed to (C, side, side): antialiased bicubic, float32."""
    return F.interpolate(image.float()[None], (side, side), mode="bicubic", antialias=True)[0]


def native_cut(image: Tensor, patch_size: int = 14) -> CutImage:
    """An image (C, S, S) of the native size cut as CLIP does, into the uniform grid."""
    side = image.shape[1] // patch_size
    leaves = Leaves.uniform((side, side))
    return CutImage(leaves, extract_patches(image, leaves, patch_size))


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
