"""The quadtree as one would first write it: recursion over blocks, each scored from its pixels. The bench's peer.

It does the same work as `qlip.partition` and `qlip.extract_patches` for layout "aligned", with torch on every block.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from qlip.config import SplitOrder

Box = tuple[int, int, int]
Score = Callable[[Tensor, int, Box], float]
"""(image, patch size, block) -> its score."""

WINDOW, OBJECTS_WINDOW = 5, 7
"""`structure_size` of criterion "structure" and of "objects", each as it was shipped."""


def gradient_score(image: Tensor, patch_size: int, box: Box) -> float:
    """Computes the largest |d/drow| + |d/dcol| over channels and pixels; differences beyond the block count as zero."""
    pixels = _pixels(image, box, patch_size)
    steps = torch.zeros_like(pixels)
    steps[:, :-1] += (pixels[:, 1:] - pixels[:, :-1]).abs()
    steps[:, :, :-1] += (pixels[:, :, 1:] - pixels[:, :, :-1]).abs()
    return steps.max().item()


def structure_score(image: Tensor, patch_size: int, box: Box) -> float:
    """Computes the largest top-hat or bottom-hat of the block sampled to one patch; at least its children's."""
    if box[2] == 1:
        return 0.0
    return max(_largest_hat(image, patch_size, box), *(structure_score(image, patch_size, c) for c in _children(box)))


class ObjectsScore:
    """Scores by objects that are nowhere as wide as the window: hats by reconstruction, of one image's levels."""

    def __init__(self) -> None:
        self.hats: dict[int, Tensor] = {}
        """By the side of a block; whole objects are seen in the whole image only."""

    def __call__(self, image: Tensor, patch_size: int, box: Box) -> float:
        row, col, size = box
        if size == 1:
            return 0.0
        if size not in self.hats:
            self.hats[size] = _find_object_hats(image, size)
        top, left = row // size * patch_size, col // size * patch_size
        own = self.hats[size][top : top + patch_size, left : left + patch_size].max().item()
        return max(own, *(self(image, patch_size, child) for child in _children(box)))


def naive_partition(
    image: Tensor,
    patch_size: int,
    alpha: float,
    score: Score = gradient_score,
    max_leaf: int | None = None,
    max_tokens: int | None = None,
    split_order: SplitOrder = "score",
) -> list[Box]:
    """Finds the leaves as (row, col, size) in cells, in raster order.

    Args:
        image: float (C, H, W), normalised; H and W multiples of `patch_size`.
        patch_size: pixels per side of a cell.
        alpha: split threshold.
        score: of a block.
        max_leaf: bound on a leaf's side in cells, a power of two.
        max_tokens: budget; the first blocks in `split_order` split while it lasts.
        split_order: by falling "score", or score times "side".
    """
    rows, cols = image.shape[1] // patch_size, image.shape[2] // patch_size
    root = max(1, (1 << min(rows, cols).bit_length()) >> 2)
    root = root if max_leaf is None else min(root, max_leaf)
    tops: list[Box] = []
    for row in range(0, rows, root):
        for col in range(0, cols, root):
            _descend((rows, cols), (row, col, root), tops)
    if max_tokens is not None:
        return sorted(_split_best(image, patch_size, alpha, score, tops, max_tokens, split_order))
    leaves: list[Box] = []
    for top in tops:
        _split(image, patch_size, alpha, score, top, leaves)
    return sorted(leaves)


def naive_patches(image: Tensor, leaves: list[Box], patch_size: int) -> Tensor:
    """Resamples each leaf by itself: (N, C, P, P)."""
    shape = (patch_size, patch_size)
    patches = []
    for box in leaves:
        pixels = _pixels(image, box, patch_size)
        if box[2] > 1:
            pixels = F.interpolate(pixels[None], shape, mode="bilinear", antialias=True)[0]
        patches.append(pixels)
    return torch.stack(patches)


def _descend(grid: tuple[int, int], box: Box, tops: list[Box]) -> None:
    """Collects the coarsest blocks that are wholly inside the grid."""
    row, col, size = box
    if row >= grid[0] or col >= grid[1]:
        return
    if row + size <= grid[0] and col + size <= grid[1]:
        tops.append(box)
        return
    for child in _children(box):
        _descend(grid, child, tops)


def _split(image: Tensor, patch_size: int, alpha: float, score: Score, box: Box, leaves: list[Box]) -> None:
    if box[2] == 1 or score(image, patch_size, box) < alpha:
        leaves.append(box)
        return
    for child in _children(box):
        _split(image, patch_size, alpha, score, child, leaves)


def _split_best(
    image: Tensor,
    patch_size: int,
    alpha: float,
    score: Score,
    tops: list[Box],
    max_tokens: int,
    split_order: SplitOrder,
) -> list[Box]:
    """Splits blocks in order, larger ones first where they tie, then in raster order."""
    leaves = set(tops)
    queue: list[tuple[float, int, Box, float]] = []

    def consider(box: Box, above: float) -> None:
        if box[2] > 1 and (own := min(above, score(image, patch_size, box))) >= alpha:
            heapq.heappush(queue, (-own * (box[2] if split_order == "side" else 1), -box[2], box, own))

    for box in tops:
        consider(box, math.inf)
    while queue and len(leaves) + 3 <= max_tokens:
        *_, box, own = heapq.heappop(queue)
        leaves.remove(box)
        leaves.update(_children(box))
        for child in _children(box):
            consider(child, own)
    return list(leaves)


def _children(box: Box) -> list[Box]:
    row, col, size = box
    half = size // 2
    return [(row, col, half), (row, col + half, half), (row + half, col, half), (row + half, col + half, half)]


def _largest_hat(image: Tensor, patch_size: int, box: Box) -> float:
    """Samples the block and what its windows see around it, opens and closes, and takes the largest difference."""
    row, col, size = box
    reach, height, width = WINDOW - 1, image.shape[1] // size, image.shape[2] // size
    top, left = row // size * patch_size, col // size * patch_size  # in sampled pixels
    first, last = max(top - reach, 0), min(top + patch_size + reach, height)
    start, end = max(left - reach, 0), min(left + patch_size + reach, width)
    pixels = image[None, :, first * size : last * size, start * size : end * size]
    for _ in range(size.bit_length() - 1):
        pixels = F.avg_pool2d(pixels, 2)
    beyond = (
        start - left + reach,
        left + patch_size + reach - end,
        first - top + reach,
        top + patch_size + reach - last,
    )
    pixels = F.pad(pixels, beyond, mode="replicate")
    opening = _dilate(-_dilate(-pixels, WINDOW), WINDOW)
    closing = -_dilate(-_dilate(pixels, WINDOW), WINDOW)
    centre = pixels[..., reach:-reach, reach:-reach]
    return torch.maximum(centre - opening, closing - centre).max().item()


def _find_object_hats(image: Tensor, size: int) -> Tensor:
    """Computes max over channels of the image less its opening, and its closing less it, by reconstruction: (H, W)."""
    pixels = image[None]
    for _ in range(size.bit_length() - 1):
        pixels = F.avg_pool2d(pixels, 2)
    both, reach = torch.cat([pixels, -pixels]), OBJECTS_WINDOW - 1
    padded = F.pad(both, (reach, reach, reach, reach), mode="replicate")
    opening = _dilate(-_dilate(-padded, OBJECTS_WINDOW), OBJECTS_WINDOW)
    grown = torch.maximum(_grow(opening, both), _grow(opening.mT, both.mT).mT)
    return (both - grown).amax((0, 1))


def _grow(marker: Tensor, mask: Tensor) -> Tensor:
    """Raises rows to the row above, and in another copy to the one below, at most to the mask; the larger of both."""
    copies = []
    for step in (1, -1):
        rows = marker.clone().unbind(2)[::step]
        for before, row, bound in zip(rows, rows[1:], mask.unbind(2)[::step][1:], strict=False):
            near = F.max_pool1d(F.pad(before, (1, 1), value=-math.inf), 3, stride=1)
            row.copy_(torch.minimum(torch.maximum(row, near), bound))
        copies.append(torch.stack(rows[::step], 2))
    return torch.maximum(*copies)


def _dilate(pixels: Tensor, window: int) -> Tensor:
    return F.max_pool2d(pixels, window, stride=1)


def _pixels(image: Tensor, box: Box, patch_size: int) -> Tensor:
    row, col, size = (patch_size * value for value in box)
    return image[:, row : row + size, col : col + size]
