"""The native cells that a quadtree splits, which may stay in the tower's sequence behind the leaves.

A vision transformer was trained on whole grids. Where a native cell is split its token is missing, and the tokens of
the other cells change. So the tower can compute split cells' tokens, too. The language model does not get them.

- Cells, split or not, larger leaves and [CLS] attend to each other and to no smaller leaf. So they are seen as CLIP
  sees them; but the pixels of split cells are put together from their leaves'.
- Smaller leaves attend to each other and to what is not split, as without split cells.

Leaves that tile no whole native cell, as at the edge of a grid with geometry "grid", count as cells.

Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qlip.config import QLIPConfig
from qlip.patches import CutImage
from qlip.quadtree import Leaves
from qlip.roots import native_max_leaf, roots_for


@dataclass(frozen=True, eq=False)
class SplitCells:
    """The native cells of one image that smaller leaves tile."""

    cells: Leaves
    """Their places, in raster order, all of one side."""

    parts: Tensor
    """int64 (M,): the leaves in them, as indices into the tree's."""

    corner: Tensor
    """int64 (2,): row and column from which cells are counted."""


def add_split_cells(cut: CutImage, settings: QLIPConfig, native_grid: int) -> tuple[CutImage, SplitCells]:
    """Appends the cells that an image's leaves split to these leaves; see `find_split_cells`."""
    split = find_split_cells(cut.leaves, settings, native_grid)
    boxes = torch.cat([cut.leaves.boxes, split.cells.boxes])
    patches = torch.cat([cut.patches, join_patches(cut, split)])
    return CutImage(Leaves(boxes, cut.leaves.grid), patches, cut.thumbnail), split


def find_split_cells(leaves: Leaves, settings: QLIPConfig, native_grid: int) -> SplitCells:
    """Finds the native cells that smaller leaves tile; a part of one, at the edge of the grid, is none.

    Args:
        leaves: the tree.
        settings: those that it was cut under; their geometry and roots decide where native cells lie.
        native_grid: n, cells per side of the grid that the tower was trained on.
    """
    grid = leaves.grid
    side = native_max_leaf(grid, native_grid, settings.geometry)
    roots = roots_for(settings, grid, native_grid)
    corner = torch.tensor([roots.top, roots.left], device="cpu")
    places, sizes = leaves.boxes[:, :2] - corner, leaves.sizes
    smaller = (sizes < side) & (places >= 0).all(1) & (places % sizes[:, None] == 0).all(1)
    found, index = (places[smaller] // side).unique(dim=0, return_inverse=True)  # sorted: in raster order
    covered = torch.zeros(len(found), dtype=torch.int64, device="cpu").index_add_(0, index, sizes[smaller] ** 2)
    is_tiled = covered == side**2
    cells = Leaves(F.pad(found[is_tiled] * side + corner, (0, 1), value=side), grid)
    return SplitCells(cells, smaller.nonzero()[is_tiled[index], 0], corner)


def join_patches(cut: CutImage, split: SplitCells) -> Tensor:
    """Puts the pixels of split cells together from their leaves', which lose half of their resolution a level.

    Returns:
        float (cells, C, P, P), dtype and device of the leaves' patches; antialiased bicubic, as CLIP's processor
        resizes.
    """
    pixels = cut.patches[split.parts.to(cut.patches.device)]
    if not len(split.cells):
        return pixels
    places, sizes = cut.leaves.boxes[split.parts, :2] - split.corner, cut.leaves.sizes[split.parts]
    width, size = pixels.shape[-1], 1
    while size < int(split.cells.sizes[0]):
        own = sizes == size
        blocks, index = (places[own] // (2 * size)).unique(dim=0, return_inverse=True)
        order = (4 * index + places[own] // size % 2 @ torch.tensor([2, 1], device="cpu")).argsort()
        chosen = own.to(pixels.device)
        quarters = pixels[chosen][order.to(pixels.device)].unflatten(0, (-1, 2, 2))
        whole = quarters.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)  # (blocks, C, 2 P, 2 P)
        halves = F.interpolate(whole.float(), (width, width), mode="bicubic", antialias=True).to(pixels.dtype)
        pixels = torch.cat([pixels[~chosen], halves])
        places = torch.cat([places[~own], 2 * size * blocks])
        sizes = torch.cat([sizes[~own], torch.full((len(blocks),), 2 * size, device="cpu")])
        size *= 2
    return pixels


def hide_tokens(
    mask: Tensor | None, splits: Sequence[SplitCells], lengths: Sequence[int], prefix: int, hidden: Tensor
) -> Tensor | None:
    """Hides smaller leaves from cells, and split cells from smaller leaves, in the attention of a padded batch.

    Args:
        mask: additive, (B, 1, 1, T) over keys, or None.
        splits: of each image; its cells follow its leaves in the sequence. Empty if split cells are not kept.
        lengths: tokens of each image before its split cells.
        prefix: tokens before the leaves.
        hidden: (B, T, D); the mask is of its dtype.

    Returns:
        (B, 1, T, T) over queries and keys; `mask` itself if no image has a split cell.
    """
    if not any(len(split.cells) for split in splits):
        return mask
    total = hidden.shape[1]
    is_part, is_split = torch.zeros(2, len(splits), total, dtype=torch.bool, device="cpu")
    for row, split in enumerate(splits):
        is_part[row, prefix + split.parts] = True
        is_split[row, lengths[row] : lengths[row] + len(split.cells)] = True
    is_part, is_split = is_part.to(hidden.device), is_split.to(hidden.device)
    unseen = torch.where(is_part[:, :, None], is_split[:, None], is_part[:, None])[:, None]
    full = hidden.new_zeros(()) if mask is None else mask.expand(-1, -1, total, -1)
    return full.masked_fill(unseen, torch.finfo(hidden.dtype).min)
