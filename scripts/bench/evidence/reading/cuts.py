"""Where the text of a sign lies among the leaves of a quadtree, and trees that see it at full size."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from playground.objects import Sign
from playground.signs import MARGIN
from qlip.quadtree import Leaves


class Area(NamedTuple):
    """A rectangle on the grid of cells; its edges may lie within cells."""

    top: float
    left: float
    bottom: float
    right: float

    def overlaps(self, row: Any, col: Any, size: Any) -> Any:
        """Whether a square of cells overlaps it; of numbers, or of tensors element by element."""
        return (row < self.bottom) & (row + size > self.top) & (col < self.right) & (col + size > self.left)


def text_area(sign: Sign, size: tuple[int, int], grid: tuple[int, int]) -> Area:
    """Finds where a sign's text lies: its plate without the margin.

    Args:
        sign: the sign.
        size: (height, width) of the picture in pixels.
        grid: (rows, cols) that the picture is resized to, in cells.
    """
    margin = MARGIN * sign.height
    (top, bottom), (left, right) = (
        ((middle - length / 2 + margin) * cells / side, (middle + length / 2 - margin) * cells / side)
        for middle, length, side, cells in zip(sign.centre, sign.box, size, grid, strict=True)
    )
    return Area(top, left, bottom, right)


def share_at_full_size(leaves: Leaves, area: Area) -> float:
    """Computes the share of an area that lies in leaves of one cell."""
    rows, cols = (
        (torch.arange(1, cells + 1).clamp(max=end) - torch.arange(cells).clamp(min=start)).clamp(min=0)
        for cells, start, end in zip(leaves.grid, area[:2], area[2:], strict=True)
    )
    overlap = rows[:, None] * cols
    is_single = leaves.sizes[leaves.token_map()] == 1
    return float((overlap * is_single).sum() / overlap.sum())


def find_text(leaves: Leaves, area: Area) -> torch.Tensor:
    """Finds the leaves that overlap an area: bool (N,)."""
    return area.overlaps(*leaves.boxes.unbind(1))


def split_area(leaves: Leaves, area: Area) -> Leaves:
    """Splits every leaf that overlaps an area until those that do are single cells."""
    waiting, done = [tuple(box) for box in leaves.boxes.tolist()], []
    while waiting:
        row, col, size = waiting.pop()
        if size == 1 or not area.overlaps(row, col, size):
            done.append((row, col, size))
            continue
        half = size // 2
        waiting += [(row + down, col + across, half) for down in (0, half) for across in (0, half)]
    return Leaves(torch.tensor(sorted(done)), leaves.grid)
