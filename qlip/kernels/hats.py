"""Top-hats and bottom-hats of an image, level by level, compiled by numba: the same bits as `qlip.scores.structure`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numba
import numpy as np

from qlip.kernels.compiling import Kernel, compile_loop
from qlip.kernels.windows import BAND, halve_lines, open_across, read_band, read_line


def find_cell_hats(
    image: np.ndarray, patch_size: int, size: int, floors: Sequence[np.ndarray]
) -> list[np.ndarray] | None:
    """Computes the largest hat less its channel's floor, from 0, in each whole cell of an image halved level by level.

    Args:
        image: float32 (C, H, W), contiguous.
        patch_size: side of a cell in pixels.
        size: side of the window in pixels.
        floors: (C,) of each level from 1.

    Returns:
        (rows, cols) of each level; None if a pixel is not finite, since minima then differ from numpy's.
    """
    hats = []
    for level, floor in enumerate(floors, start=1):
        halves = level == 1
        height, width = (extent // 2 if halves else extent for extent in image.shape[1:])
        step = max(1, BAND // max(1, patch_size * width))  # rows of cells at once
        own = np.zeros((height // patch_size, width // patch_size), np.float32)
        halved = np.empty((len(image), height // 2, width // 2), np.float32)
        if not _make_hats(size)(image, patch_size, floor, step, halves, own, halved):
            return None
        hats.append(own)
        image = halved
    return hats


@cache
def _make_hats(size: int) -> Kernel:
    """Compiles one level of `find_cell_hats` for one size of window.

    The compiled function takes the image of that level or, with `halves`, of the one before, and also writes the next
    level's: what a band of the image becomes, while the band is in the core's cache. It returns whether all pixels that
    it read are finite.
    """
    reach = size - 1

    def find(
        image: np.ndarray,
        patch_size: int,
        floor: np.ndarray,
        step: int,
        halves: bool,
        hats: np.ndarray,
        halved: np.ndarray,
    ) -> bool:
        channels, height, width = image.shape
        if halves:
            height, width = height // 2, width // 2
        rows, cols = height // patch_size, width // patch_size
        most, pitch = min(step, rows + 1) * patch_size + 2 * reach, width + 2 * reach
        pixels = np.empty((most, pitch), np.float32)
        low, high = np.empty((most, pitch), np.float32), np.empty((most, pitch), np.float32)
        eroded, dilated = np.empty((most, pitch), np.float32), np.empty((most, pitch), np.float32)
        highest = np.empty(width, np.float32)
        beyond = 0
        for top in range(0, rows, step):
            count = min(step, rows - top)
            lines, start = count * patch_size + 2 * reach, top * patch_size - reach
            for channel in range(channels):
                beyond += read_band(image[channel], halves, start, lines, height, width, reach, pixels)
                for line in range((top * patch_size + 1) // 2, min(((top + count) * patch_size + 1) // 2, height // 2)):
                    upper, lower = pixels[2 * line - start][reach:], pixels[2 * line + 1 - start][reach:]
                    halve_lines(upper, lower, width // 2, halved[channel, line])
                open_across(size, pixels, low, high, eroded, dilated, lines, width)
                for row in range(count):
                    highest[:] = floor[channel]
                    for line in range(row * patch_size, (row + 1) * patch_size):
                        _raise_to_hats(size, pixels[line + reach][reach:], low, high, line, highest, width)
                    for col in range(cols):
                        best = highest[col * patch_size : (col + 1) * patch_size].max() - floor[channel]
                        hats[top + row, col] = max(hats[top + row, col], best)
        for channel in range(channels):
            for line in range((rows * patch_size + 1) // 2, height // 2):  # below the last whole cell
                for part in range(2):
                    read_line(image[channel], halves, 2 * line + part, width, pixels[part])
                halve_lines(pixels[0], pixels[1], width // 2, halved[channel, line])
        return beyond == 0

    return compile_loop(find, size)


@numba.njit(inline="always")
def _raise_to_hats(size, own, low, high, line, highest, width):  # type: ignore[no-untyped-def]
    """Raises `highest` to one line's hats: its pixels less their opening, and their closing less them.

    The opening is the largest of `low` in a window that goes down from the line, the closing the smallest of `high`.
    """
    for x in range(width):
        opened, closed = low[line, x], high[line, x]
        for step in range(1, size):
            opened, closed = max(opened, low[line + step, x]), min(closed, high[line + step, x])
        highest[x] = max(highest[x], max(own[x] - opened, closed - own[x]))
