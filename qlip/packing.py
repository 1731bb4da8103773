"""Cut pictures as plain tensors, so that they travel wherever a processor's output does: `.to`, collators, pipelines.

A picture is cut once, by whoever prepares it: were it cut again from pixels that were rounded on the way, the tokens
could differ in number from the placeholders in the prompt. Knows nothing of models or text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qlip.patches import CutImage, native_cut, pad_ragged
from qlip.quadtree import Leaves

PACKED_NAMES = ("pixel_values", "leaf_boxes", "leaf_grids")


def pack(images: Sequence[CutImage], patch_size: int) -> dict[str, Tensor]:
    """The tensors that stand for B images. Those of several calls may be joined, `leaf_boxes` padded to one length.

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
    grids = torch.tensor([image.leaves.grid for image in images])
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


def unpack(pixel_values: Tensor, leaf_boxes: Tensor, leaf_grids: Tensor) -> list[CutImage]:
    """The inverse of `pack`.

    Raises:
        ValueError: the tensors are not those of the same images.
    """
    leaves = unpack_leaves(leaf_boxes, leaf_grids)
    counts = [len(tree) for tree in leaves]
    extra, rest = divmod(len(pixel_values) - sum(counts), len(leaves))  # patches of each image's thumbnail
    side = math.isqrt(max(extra, 0))
    if pixel_values.ndim != 4 or rest or side**2 != extra:
        raise ValueError(
            f"pixel_values are {tuple(pixel_values.shape)}, and leaf_boxes hold {sum(counts)} leaves of {len(leaves)}"
            " images; pixel_values must be (patches, C, P, P), as the attached processor gives them"
        )
    images = []
    for tree, part in zip(leaves, pixel_values.split([extra + count for count in counts]), strict=True):
        small, patches = part.split([extra, len(tree)])
        # (n * n, C, P, P) -> (C, n P, n P), the inverse of cutting into the uniform grid
        whole = small.unflatten(0, (side, side)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2) if extra else None
        images.append(CutImage(tree, patches, whole))
    return images
