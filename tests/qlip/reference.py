"""A naive quadtree and naive positions, written from the method's definition: the oracle of the tests in this folder.

One block at a time, plain recursion over the pixels of each block, numpy; slow and simple. It uses nothing of the
package that it checks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch

Block = tuple[int, int, int]
"""(row, col, size) of a square block, in cells."""


def children(block: Block) -> list[Block]:
    row, col, size = block
    half = size // 2
    return [(row, col, half), (row, col + half, half), (row + half, col, half), (row + half, col + half, half)]


def root_size(rows: int, cols: int, max_leaf: int | None = None) -> int:
    size = max(1, 2 ** math.floor(math.log2(min(rows, cols))) // 2)
    return size if max_leaf is None else min(size, max_leaf)


def gradient_score(pixels: np.ndarray) -> float:
    """Largest |d/drow| + |d/dcol| in (C, h, w); float32 like the image, so that equal scores stay equal."""
    down, right = np.zeros_like(pixels), np.zeros_like(pixels)
    down[:, :-1] = np.abs(pixels[:, 1:] - pixels[:, :-1])
    right[:, :, :-1] = np.abs(pixels[:, :, 1:] - pixels[:, :, :-1])
    return float((down + right).max())


def diagonal_score(pixels: np.ndarray) -> float:
    steps = pixels[:, 1:, 1:] - pixels[:, :-1, :-1]
    return max(0.0, float(steps.max())) if steps.size else 0.0


def variance_score(pixels: np.ndarray, image_pixels: int) -> float:
    channels = pixels.astype(np.float64).reshape(len(pixels), -1)
    return float(channels.var(axis=1, ddof=1).max()) * channels.shape[1] / (image_pixels / 1000)


def average_pool(image: np.ndarray, step: int) -> np.ndarray:
    """(C, H, W) -> (C, H // step, W // step) means; remainders are dropped."""
    channels, height, width = image.shape
    rows, cols = height // step, width // step
    tiles = image[:, : rows * step, : cols * step].astype(np.float64).reshape(channels, rows, step, cols, step)
    return tiles.mean(axis=(2, 4))


def fine_structure(pooled: np.ndarray, window: int, whole_objects: bool = False) -> np.ndarray:
    """What a flat square window's opening removes or its closing fills, per pixel of (C, h, w).

    With `whole_objects`, what they keep first grows back along the object.
    """
    reach = window - 1  # an opening looks at most this far: half a window to erode, half a window to dilate
    padded = np.pad(pooled, ((0, 0), (reach, reach), (reach, reach)), mode="edge")

    def slide(values: np.ndarray, extreme) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(values, (window, window), axis=(1, 2))
        return extreme(windows, axis=(3, 4))

    opening = slide(slide(padded, np.min), np.max)
    closing = slide(slide(padded, np.max), np.min)
    if whole_objects:
        opening, closing = grow(opening, pooled), -grow(-closing, -pooled)
    return np.maximum(pooled - opening, closing - pooled)


def grow(marker: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Raises pixels of (C, h, w), one by one, to their three neighbours in the line before, at most to the mask.

    Lines are rows from the top down, rows from the bottom up, columns from the left and columns from the right, in a
    copy each; the largest of the four is taken.
    """
    copies = []
    for turns in range(4):
        own, bound = np.rot90(marker, turns, (1, 2)), np.rot90(mask, turns, (1, 2))
        height, width = bound.shape[1:]
        raised = np.full((len(bound), height + 1, width + 2), -np.inf)
        for y in range(height):
            for x in range(width):
                near = raised[:, y, x : x + 3].max(axis=1)
                raised[:, y + 1, x + 1] = np.minimum(np.maximum(own[:, y, x], near), bound[:, y, x])
        copies.append(np.rot90(raised[:, 1:, 1:-1], -turns, (1, 2)))
    return np.max(copies, axis=0)


@dataclass
class NaiveQuadtree:
    """The tree of one image: what may be split and how urgently; `leaves` then cuts it at a threshold and a budget.

    Attributes:
        tops: the coarsest leaves possible, whatever the threshold.
        effective: every block that may be split -> the smallest score on the way down to it.
    """

    image: np.ndarray
    patch_size: int
    criterion: str = "gradient"
    layout: str = "aligned"
    max_leaf: int | None = None
    structure_size: int = 7
    seed: int = 0
    tops: list[Block] = field(default_factory=list, init=False)
    effective: dict[Block, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.rows, self.cols = (side // self.patch_size for side in self.image.shape[1:])
        self.root = root_size(self.rows, self.cols, self.max_leaf)
        self.origin, self.covered = (0, 0), (self.rows, self.cols)
        if self.layout == "centered":
            self.covered = (self.rows // self.root * self.root, self.cols // self.root * self.root)
            self.origin = ((self.rows - self.covered[0]) // 2, (self.cols - self.covered[1]) // 2)
        self._draw_scores()
        self._measure_structure()
        for row in range(self.rows):
            for col in range(self.cols):
                self._start(row, col)

    def leaves(self, alpha: float, max_tokens: int | None = None, order: str = "score") -> list[Block]:
        """The leaves as (row, col, size), in raster order."""
        split = set()
        for block in self.candidates(alpha, order):
            if max_tokens is None or len(self.tops) + 3 * len(split) + 3 <= max_tokens:
                split.add(block)
        return sorted(leaf for top in self.tops for leaf in self._cut(top, split))

    def candidates(self, alpha: float, order: str = "score") -> list[Block]:
        """The blocks that the threshold splits, the most urgent first."""
        blocks = [block for block, score in self.effective.items() if score >= alpha]
        return sorted(blocks, key=lambda block: (-self.urgency(block, order), -block[2], block[0], block[1]))

    def urgency(self, block: Block, order: str) -> float:
        """The score, with order "side" times the side."""
        return self.effective[block] * (block[2] if order == "side" else 1)

    def _cut(self, block: Block, split: set[Block]) -> list[Block]:
        if block not in split:
            return [block]
        return [leaf for child in children(block) for leaf in self._cut(child, split)]

    def _start(self, row: int, col: int) -> None:
        """Descends from the root block whose top-left cell this is; a cell outside all roots is a leaf."""
        inside_row, inside_col = row - self.origin[0], col - self.origin[1]
        if not (0 <= inside_row < self.covered[0] and 0 <= inside_col < self.covered[1]):
            self.tops.append((row, col, 1))
        elif inside_row % self.root == 0 and inside_col % self.root == 0:
            self._descend((row, col, self.root))

    def _descend(self, block: Block) -> None:
        row, col, size = block
        if row >= self.rows or col >= self.cols:
            return
        if row + size <= self.rows and col + size <= self.cols:
            self.tops.append(block)
            self._weigh(block, math.inf)
        else:
            for child in children(block):
                self._descend(child)

    def _weigh(self, block: Block, limit: float) -> None:
        if block[2] > 1:
            self.effective[block] = min(limit, self.score(block))
            for child in children(block):
                self._weigh(child, self.effective[block])

    def score(self, block: Block) -> float:
        row, col, size = block
        if self.criterion == "random":
            return float(self._drawn[size][(row - self.origin[0]) // size, (col - self.origin[1]) // size])
        if self.criterion in ("structure", "objects"):
            return self._structure_score(block)
        step = self.patch_size
        pixels = self.image[:, row * step : (row + size) * step, col * step : (col + size) * step]
        if self.criterion == "gradient":
            return gradient_score(pixels)
        if self.criterion == "diagonal":
            return diagonal_score(pixels)
        return variance_score(pixels, self.image.shape[1] * self.image.shape[2])

    def _structure_score(self, block: Block) -> float:
        row, col, size = block
        if size == 1:
            return 0.0
        step = self.patch_size
        top, left = ((row - self.origin[0]) // size * step, (col - self.origin[1]) // size * step)
        own = float(self._fine[size][:, top : top + step, left : left + step].max())
        return max(own, *(self._structure_score(child) for child in children(block)))

    def _sizes(self) -> list[int]:
        return [2**level for level in range(1, int(math.log2(self.root)) + 1)]

    def _draw_scores(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self._drawn: dict[int, np.ndarray] = {}
        for size in self._sizes() if self.criterion == "random" else []:
            shape = (math.ceil(self.covered[0] / size), math.ceil(self.covered[1] / size))
            self._drawn[size] = torch.rand(shape, generator=generator).numpy()

    def _measure_structure(self) -> None:
        step, (row, col), (rows, cols) = self.patch_size, self.origin, self.covered
        region = self.image[:, row * step : (row + rows) * step, col * step : (col + cols) * step]
        self._fine: dict[int, np.ndarray] = {}
        for size in self._sizes() if self.criterion in ("structure", "objects") else []:
            pooled = average_pool(region, size)
            self._fine[size] = fine_structure(pooled, self.structure_size, self.criterion == "objects")


def clear_thresholds(scores: list[float], fractions: tuple[float, ...] = (0.1, 0.4, 0.7, 0.95)) -> list[float]:
    """Thresholds near the given quantiles that rounding cannot move: midway between scores that differ clearly."""
    distinct = np.unique(np.array(scores, dtype=np.float64))
    gaps = np.diff(distinct)
    clear = np.flatnonzero(gaps > 1e-4 * np.abs(distinct[1:]))
    if clear.size == 0:
        return []
    nearest = {int(clear[np.abs(clear - fraction * len(gaps)).argmin()]) for fraction in fractions}
    return [float(distinct[index] + gaps[index] / 2) for index in sorted(nearest)]


def clear_budgets(
    tree: NaiveQuadtree, alpha: float, order: str = "score", fractions: tuple[float, ...] = (0.0, 0.2, 0.5, 0.9)
) -> list[int]:
    """Budgets at which the last split and the first one refused differ clearly, or are tied exactly."""
    scores = [tree.urgency(block, order) for block in tree.candidates(alpha, order)]
    last = [
        taken
        for taken in range(len(scores))
        if taken == 0 or scores[taken - 1] == scores[taken] or scores[taken - 1] - scores[taken] > 1e-4 * scores[taken]
    ]
    if not last:
        return [len(tree.tops)]
    splits = {min(last, key=lambda taken: abs(taken - fraction * len(scores))) for fraction in fractions}
    return [len(tree.tops) + 3 * taken + spare for taken in sorted(splits) for spare in (0, 2)]


def raster_position(leaf: Block, grid: tuple[int, int], native: int) -> Fraction:
    """The leaf's place on the native raster, in exact arithmetic."""
    row, col, size = leaf
    down = Fraction(2 * row + size, 2 * grid[0]) * native
    across = Fraction(2 * col + size, 2 * grid[1]) * native - Fraction(1, 2)
    return native * min(math.floor(down), native - 1) + min(max(across, Fraction(0)), Fraction(native - 1))
