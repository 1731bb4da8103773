"""Cut pictures as plain tensors, so that they travel wherever a processor's output does: `.to`, collators, pipelines.

A picture is cut once, by whoever prepares it: were it cut again from pixels that were rounded on the way, the tokens
could differ in number from the placeholders in the prompt. Knows nothing of models or text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlip.patches import extract_patches, pad_ragged, thumbnail_patches
from qlip.quadtree import Leaves

PACKED_NAMES = ("pixel_values", "leaf_boxes", "leaf_grids")


@dataclass(frozen=True)
class CutImages:
    """Pictures cut into patches, one entry each."""

    leaves: list[Leaves]
    """The trees."""

    patches: list[Tensor]
    """float (N_i, C, P, P), one per leaf."""

    thumbnails: list[Tensor] | None
    """float (n * n, C, P, P), the pictures as CLIP sees them; None without."""


def cut(
    images: Sequence[Tensor], leaves: Sequence[Leaves], patch_size: int, thumbnail_grid: int | None = None
) -> CutImages:
    """Cuts images (C, H, W) at their leaves; with a thumbnail of n x n cells where `thumbnail_grid` is n."""
    patches = [extract_patches(image, tree, patch_size) for image, tree in zip(images, leaves, strict=True)]
    small = None
    if thumbnail_grid is not None:
        small = [thumbnail_patches(image.float(), thumbnail_grid, patch_size) for image in images]
    return CutImages(list(leaves), patches, small)


def pack(images: CutImages) -> dict[str, Tensor]:
    """The tensors that stand for B images. Those of several calls may be joined, `leaf_boxes` padded to one length.

    Returns:
        `pixel_values` float (sum of M_i, C, P, P): image after image, the thumbnail's patches, where there is one, then
        the leaves';
        `leaf_boxes` int64 (B, N, 3): row, col and size of the leaves in cells, size 0 on padding;
        `leaf_grids` int64 (B, 2): rows and cols of the image in cells.
    """
    small = images.thumbnails or [patches[:0] for patches in images.patches]
    parts = [part for pair in zip(small, images.patches, strict=True) for part in pair]
    boxes, _ = pad_ragged([tree.boxes for tree in images.leaves])
    grids = torch.tensor([tree.grid for tree in images.leaves])
    return {"pixel_values": torch.cat(parts), "leaf_boxes": boxes, "leaf_grids": grids}


def unpack_leaves(leaf_boxes: Tensor, leaf_grids: Tensor) -> list[Leaves]:
    """The trees of packed images.

    Raises:
        ValueError: boxes and grids are not those of the same images.
    """
    if leaf_boxes.ndim != 3 or leaf_boxes.shape[2] != 3 or leaf_grids.shape != (len(leaf_boxes), 2):
        raise ValueError(
            f"leaf_boxes are {tuple(leaf_boxes.shape)}, leaf_grids {tuple(leaf_grids.shape)}; they must be (B, N, 3)"
            " and (B, 2), as the attached processor gives them"
        )
    boxes, grids = leaf_boxes.cpu().long(), leaf_grids.tolist()
    return [Leaves(own[own[:, 2] > 0], (rows, cols)) for own, (rows, cols) in zip(boxes, grids, strict=True)]


def unpack(pixel_values: Tensor, leaf_boxes: Tensor, leaf_grids: Tensor) -> CutImages:
    """The inverse of `pack`.

    Raises:
        ValueError: the tensors are not those of the same images.
    """
    leaves = unpack_leaves(leaf_boxes, leaf_grids)
    counts = [len(tree) for tree in leaves]
    extra, rest = divmod(len(pixel_values) - sum(counts), len(leaves))  # patches of each image's thumbnail
    if pixel_values.ndim != 4 or extra < 0 or rest:
        raise ValueError(
            f"pixel_values are {tuple(pixel_values.shape)}, and leaf_boxes hold {sum(counts)} leaves of {len(leaves)}"
            " images; pixel_values must be (patches, C, P, P), as the attached processor gives them"
        )
    parts = [part.split([extra, len(part) - extra]) for part in pixel_values.split([extra + count for count in counts])]
    return CutImages(leaves, [patches for _, patches in parts], [small for small, _ in parts] if extra else None)
