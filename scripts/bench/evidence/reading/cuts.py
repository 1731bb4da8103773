"""Where the text of a sign lies among the leaves of a quadtree, and trees that see it at full size."""

from __future__ import annotations

from typing import NamedTuple

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
    row, col, size = leaves.boxes.unbind(1)
    return (row < area.bottom) & (row + size > area.top) & (col < area.right) & (col + size > area.left)


def split_area(leaves: Leaves, area: Area) -> Leaves:
    """Splits every leaf that overlaps an area until those that do are single cells."""
    waiting, done = [tuple(box) for box in leaves.boxes.tolist()], []
    while waiting:
        row, col, size = waiting.pop()
        is_inside = row < area.bottom and row + size > area.top and col < area.right and col + size > area.left
        if size == 1 or not is_inside:
            done.append((row, col, size))
            continue
        half = size // 2
        waiting += [(row + down, col + across, half) for down in (0, half) for across in (0, half)]
    return Leaves(torch.tensor(sorted(done)), leaves.grid)
