"""Cut images as plain tensors, which work wherever a processor's output does: `.to`, collators, pipelines.

An image is cut once, when it is prepared: if it were cut again from rounded pixels, the number of tokens could differ
from the placeholders in the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qlip.patches import CutImage, native_cut
from qlip.quadtree import Leaves
from qlip.ragged import pad_ragged

PACKED_NAMES = ("pixel_values", "leaf_boxes", "leaf_grids")

AS_GIVEN = "as the attached processor gives them"

INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def pack(images: Sequence[CutImage], patch_size: int) -> dict[str, Tensor]:
    """Packs B images into tensors. Those of several calls may be joined, with `leaf_boxes` padded to one length.

    Returns:
        `pixel_values` float (sum of M_i, C, P, P): image after image, the thumbnail's patches, where there is one, then
        the leaves';
        `leaf_boxes` int64 (B, N, 3): row, col and size of the leaves in cells, size 0 on padding;
        `leaf_grids` int64 (B, 2): rows and cols of the image in cells.
    """
    parts = []
    for image in images:
        if image.thumbnail is not None:
            parts.append(native_cut(image.thumbnail, patch_size).patches.to(image.patches))
        parts.append(image.patches)
    boxes, _ = pad_ragged([image.leaves.boxes for image in images])
    grids = torch.tensor([image.leaves.grid for image in images], device="cpu")
    return {"pixel_values": torch.cat(parts), "leaf_boxes": boxes, "leaf_grids": grids}


def check_pair(leaf_boxes: Tensor | None, leaf_grids: Tensor | None) -> None:
    """Raises ValueError if one of the two is missing."""
    if (leaf_boxes is None) != (leaf_grids is None):
        missing = "leaf_boxes" if leaf_boxes is None else "leaf_grids"
        raise ValueError(f"leaf_boxes and leaf_grids go together; {missing} are missing: give both {AS_GIVEN}")


def unpack_leaves(leaf_boxes: Tensor, leaf_grids: Tensor) -> list[Leaves]:
    """Reads the trees of packed images.

    Raises:
        ValueError: boxes and grids are not those of the same images, or the leaves of one do not tile its grid.
    """
    for name, tensor in (("leaf_boxes", leaf_boxes), ("leaf_grids", leaf_grids)):
        if not isinstance(tensor, Tensor) or tensor.dtype not in INTEGERS:
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{name} are {kind}; they must be int64, {AS_GIVEN}")
    if leaf_boxes.ndim != 3 or leaf_boxes.shape[2] != 3 or leaf_grids.shape != (len(leaf_boxes), 2):
        raise ValueError(
            f"leaf_boxes are {tuple(leaf_boxes.shape)}, leaf_grids {tuple(leaf_grids.shape)}; they must be (B, N, 3)"
            f" and (B, 2), {AS_GIVEN}; a pipeline of transformers that batches chats (batch_size above 1) takes one"
            " image in each"
        )
    if len(leaf_boxes) == 0:
        raise ValueError("leaf_boxes hold no image; give at least one, or leave them out where there is text")
    boxes, grids = leaf_boxes.cpu().long(), leaf_grids.tolist()
    trees = [Leaves(own[own[:, 2] != 0], (rows, cols)) for own, (rows, cols) in zip(boxes, grids, strict=True)]
    for number, tree in enumerate(trees):
        _check_tiling(tree, number)
    return trees


def _check_tiling(leaves: Leaves, number: int) -> None:
    """Raises unless the leaves of image `number` cover every cell of its grid once, in raster order."""
    rows, cols = leaves.grid
    row, col, size = leaves.boxes.unbind(1)
    where = f"image {number} has a grid (leaf_grids) of {rows} x {cols} cells"
    wrong = (row < 0) | (col < 0) | (size < 1) | (row + size > rows) | (col + size > cols)
    if wrong.any():
        box = leaves.boxes[wrong.nonzero()[0, 0]].tolist()
        raise ValueError(
            f"{where}, but a leaf (leaf_boxes) of row, col, size {box} outside of it; give both {AS_GIVEN}"
        )
    covered = int((size**2).sum())
    corners = row * cols + col
    if min(rows, cols) < 1 or covered != rows * cols or (corners.diff() <= 0).any() or (leaves.token_map() < 0).any():
        raise ValueError(
            f"{where}, but its {len(leaves)} leaves (leaf_boxes), of {covered} cells in all, do not cover each of its"
            f" {rows * cols} cells once in raster order; give both {AS_GIVEN}"
        )


def unpack(pixel_values: Tensor, leaf_boxes: Tensor, leaf_grids: Tensor) -> list[CutImage]:
    """Inverts `pack`.

    Raises:
        ValueError: the tensors are not those of the same images, or of other types.
    """
    if not isinstance(pixel_values, Tensor) or not pixel_values.is_floating_point():
        kind = pixel_values.dtype if isinstance(pixel_values, Tensor) else type(pixel_values).__name__
        raise ValueError(f"pixel_values are {kind}; with leaf_boxes they must be one floating-point tensor, {AS_GIVEN}")
    leaves = unpack_leaves(leaf_boxes, leaf_grids)
    counts = [len(tree) for tree in leaves]
    extra, rest = divmod(len(pixel_values) - sum(counts), len(leaves))  # patches of each image's thumbnail
    side = math.isqrt(max(extra, 0))
    if pixel_values.ndim != 4 or rest or side**2 != extra:
        raise ValueError(
            f"pixel_values are {tuple(pixel_values.shape)}, and leaf_boxes hold {sum(counts)} leaves of {len(leaves)}"
            f" images; pixel_values must be (patches, C, P, P), one for each leaf, {AS_GIVEN}"
        )
    images = []
    for tree, part in zip(leaves, pixel_values.split([extra + count for count in counts]), strict=True):
        small, patches = part.split([extra, len(tree)])
        # (n * n, C, P, P) -> (C, n P, n P), the inverse of cutting into the uniform grid
        whole = small.unflatten(0, (side, side)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2) if extra else None
        images.append(CutImage(tree, patches, whole))
    return images
