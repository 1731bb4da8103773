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
    patches = image.new_empty(len(leaves), len(image), patch_size, patch_size)
    for size in leaves.sizes.unique().tolist():
        chosen = (leaves.sizes == size).nonzero()[:, 0]
        pixels = _pixels(image, leaves.boxes[chosen], patch_size)
        if size > 1:
            out = (patch_size, patch_size)
            pixels = F.interpolate(pixels.float(), out, mode="bilinear", antialias=True)  # a CPU knows no half here
        patches[chosen.to(image.device)] = pixels.to(image.dtype)
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


def _pixels(image: Tensor, boxes: Tensor, patch_size: int) -> Tensor:
    """The pixels (n, C, size P, size P) of n leaves of one size."""
    side = int(boxes[0, 2]) * patch_size
    windows = image.unfold(1, side, patch_size).unfold(
        2, side, patch_size
    )  # a view of every place that a leaf can have
    row, col, _ = boxes.to(image.device).unbind(1)
    return windows[:, row, col].transpose(0, 1)
