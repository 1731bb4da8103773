"""Blocks of an RGB image, each resized to one cell as if the whole image had been resized."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qlip.images.resizing import BicubicResizer

LARGEST_GAP = 1
"""Unneeded blocks that may lie between two needed ones of a run: starting a new run costs as much."""

WHOLE_SHARE = 0.5
"""Largest share of an image's blocks, those in gaps included, that is resized by runs. More are resized all at once,
since the surroundings of each are then read once only."""


@dataclass(frozen=True)
class Area:
    """A rectangle of blocks: rows `top` to `bottom` and columns `left` to `right`, the last ones excluded."""

    top: int
    left: int
    bottom: int
    right: int

    def __len__(self) -> int:
        """Its number of blocks."""
        return (self.bottom - self.top) * (self.right - self.left)


def resize_blocks(
    original: BicubicResizer, grid: tuple[int, int], size: int, places: np.ndarray, patch_size: int
) -> np.ndarray:
    """Resizes some blocks of an image to one cell each, antialiased bicubic, over their borders.

    Where few blocks are wanted, only these and small gaps between them are resized: a large photograph takes as long to
    resize as a tower takes to encode it. Pillow takes their borders in single precision, so that one value in a
    thousand differs by one level.

    Args:
        original: the image.
        grid: (rows, cols) of the image in cells.
        size: side of the blocks in cells.
        places: int (n, 2), row and column of the wanted blocks, counted in blocks, in raster order; at least one, and
            none sticks out of the grid.
        patch_size: P, pixels per side of a cell.

    Returns:
        uint8 (n, P, P, 3).
    """
    blocks = np.empty((len(places), patch_size, patch_size, 3), np.uint8)
    width, height = original.image.size
    whole = Area(0, 0, grid[0] // size, grid[1] // size)
    parts = find_runs(places)
    if sum(len(area) for area, _ in parts) > WHOLE_SHARE * len(whole):
        parts = [(whole, slice(None))]
    for area, own in parts:
        rows, cols = area.bottom - area.top, area.right - area.left
        # Multiplied first: a border that falls on a whole pixel is exact.
        left, right = (width * (size * column) / grid[1] for column in (area.left, area.right))
        top, bottom = (height * (size * row) / grid[0] for row in (area.top, area.bottom))
        resized = original.resize(cols * patch_size, rows * patch_size, (left, top, right, bottom))
        squares = resized.reshape(rows, patch_size, cols, patch_size, 3)
        blocks[own] = squares[places[own, 0] - area.top, :, places[own, 1] - area.left]
    return blocks


def find_runs(places: np.ndarray) -> list[tuple[Area, slice]]:
    """Groups places of blocks, see `resize_blocks`, into runs along a row: the area of each, and which it holds."""
    row, col = places.T
    begins = (np.diff(row) != 0) | (np.diff(col) > 1 + LARGEST_GAP)
    starts = [0, *(np.flatnonzero(begins) + 1).tolist()]
    runs = [slice(start, end) for start, end in zip(starts, [*starts[1:], len(places)], strict=True)]
    return [
        (Area(int(row[run.start]), int(col[run.start]), int(row[run.start]) + 1, int(col[run.stop - 1]) + 1), run)
        for run in runs
    ]
