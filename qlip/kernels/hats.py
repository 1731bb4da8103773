"""Top-hats and bottom-hats of an image, level by level, compiled by numba: the same bits as `qlip.scores.structure`.

Windows slide from one buffer to another: see `qlip.kernels.loops` for what compiles to vector instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numba
import numpy as np

from qlip.kernels.compiling import Kernel, compile_loop
from qlip.kernels.growing import grow_plane

BAND = 2**16
"""Pixels of one channel that are opened at once, so that they stay in a core's cache."""


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


def find_object_hats(image: np.ndarray, patch_size: int, size: int, floor: np.ndarray, rounds: int) -> np.ndarray:
    """Computes the largest hat by reconstruction less its channel's floor, from 0, in each whole cell of one level.

    Args:
        image: finite float32 (C, H, W), contiguous.
        patch_size: side of a cell in pixels.
        size: side of the window in pixels.
        floor: (C,).
        rounds: of sweeps, see `qlip.kernels.growing`.

    Returns:
        float32 (rows, cols).
    """
    hats = np.zeros((image.shape[1] // patch_size, image.shape[2] // patch_size), np.float32)
    _make_object_hats(size)(image, patch_size, floor, rounds, hats)
    return hats


@cache
def _make_object_hats(size: int) -> Kernel:
    """Compiles `find_object_hats` for one size of window."""
    reach = size - 1

    def find(image: np.ndarray, patch_size: int, floor: np.ndarray, rounds: int, hats: np.ndarray) -> None:
        channels, height, width = image.shape
        lines, pitch = height + 2 * reach, width + 2 * reach
        pixels = np.empty((lines, pitch), np.float32)
        low, high = np.empty((lines, pitch), np.float32), np.empty((lines, pitch), np.float32)
        eroded, dilated = np.empty((lines, pitch), np.float32), np.empty((lines, pitch), np.float32)
        kept, negative = np.empty((2, height, width), np.float32), np.empty((height, width), np.float32)
        spare = np.empty((4, height * width), np.float32)
        for channel in range(channels):
            plane = image[channel]
            _read_band(plane, False, -reach, lines, height, width, reach, pixels)
            _find_extremes(size, pixels, low, high, lines, width + reach)
            _slide_down(_smaller, size, low, eroded, lines - reach, width + reach)
            _slide_down(_larger, size, high, dilated, lines - reach, width + reach)
            _slide_along(_larger, size, eroded, low, lines - reach, width)
            _slide_along(_smaller, size, dilated, high, lines - reach, width)
            _slide_down(_larger, size, low, kept[0], height, width)
            _slide_down(_smaller, size, high, kept[1], height, width)
            for line in range(height):
                for x in range(width):
                    kept[1, line, x] = -kept[1, line, x]
                    negative[line, x] = -plane[line, x]
            grow_plane(kept[0], plane, rounds, spare)
            grow_plane(kept[1], negative, rounds, spare)
            _raise_to_cells(plane, kept[0], patch_size, floor[channel], hats)
            _raise_to_cells(negative, kept[1], patch_size, floor[channel], hats)

    return compile_loop(find, size)


@compile_loop
def _raise_to_cells(pixels: np.ndarray, kept: np.ndarray, patch_size: int, floor: float, hats: np.ndarray) -> None:
    """Raises each cell to the most by which its pixels are above what was kept, less the floor."""
    rows, cols = hats.shape
    highest = np.empty(cols * patch_size, np.float32)
    for row in range(rows):
        highest[:] = 0
        for line in range(row * patch_size, (row + 1) * patch_size):
            for x in range(cols * patch_size):
                highest[x] = max(highest[x], pixels[line, x] - kept[line, x])
        for col in range(cols):
            hats[row, col] = max(hats[row, col], highest[col * patch_size : (col + 1) * patch_size].max() - floor)


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
                beyond += _read_band(image[channel], halves, start, lines, height, width, reach, pixels)
                for line in range((top * patch_size + 1) // 2, min(((top + count) * patch_size + 1) // 2, height // 2)):
                    upper, lower = pixels[2 * line - start][reach:], pixels[2 * line + 1 - start][reach:]
                    _halve_lines(upper, lower, width // 2, halved[channel, line])
                _find_extremes(size, pixels, low, high, lines, width + reach)
                _slide_down(_smaller, size, low, eroded, lines - reach, width + reach)
                _slide_down(_larger, size, high, dilated, lines - reach, width + reach)
                _slide_along(_larger, size, eroded, low, lines - reach, width)
                _slide_along(_smaller, size, dilated, high, lines - reach, width)
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
                    _read_line(image[channel], halves, 2 * line + part, width, pixels[part])
                _halve_lines(pixels[0], pixels[1], width // 2, halved[channel, line])
        return beyond == 0

    return compile_loop(find, size)


@numba.njit(inline="always")
def _read_band(image, halves, start, lines, height, width, reach, pixels):  # type: ignore[no-untyped-def]
    """Reads lines from `start`, extends them by the image's border, and counts the pixels that are not finite."""
    beyond = 0
    for line in range(lines):
        target = pixels[line]
        inner = target[reach:]
        _read_line(image, halves, min(max(start + line, 0), height - 1), width, inner)
        for x in range(width):
            beyond += not abs(inner[x]) < np.inf
        target[:reach] = target[reach]
        target[reach + width :] = target[reach + width - 1]
    return beyond


@numba.njit(inline="always")
def _read_line(image, halves, line, width, target):  # type: ignore[no-untyped-def]
    """Reads one line of an image, or of the image halved."""
    if halves:
        _halve_lines(image[2 * line], image[2 * line + 1], width, target)
    else:
        for x in range(width):  # assigning a slice takes 4 s longer to compile
            target[x] = image[line, x]


@compile_loop
def _halve_lines(upper: np.ndarray, lower: np.ndarray, count: int, target: np.ndarray) -> None:
    """Averages `count` times 2 x 2 pixels of two lines, in the order of `torch.nn.functional.avg_pool2d`."""
    for x in range(count):
        total = ((upper[2 * x] + upper[2 * x + 1]) + lower[2 * x]) + lower[2 * x + 1]
        target[x] = total * np.float32(0.25)


@numba.njit(inline="always")
def _slide_along(extreme, size, source, target, rows, width):  # type: ignore[no-untyped-def]
    """Slides a window of `size` pixels, which begins at its pixel, along rows, and takes their extreme."""
    for row in range(rows):
        pixels, result = source[row], target[row]
        for x in range(width):
            value = pixels[x]
            for step in range(1, size):
                value = extreme(value, pixels[x + step])
            result[x] = value


@numba.njit(inline="always")
def _find_extremes(size, source, low, high, rows, width):  # type: ignore[no-untyped-def]
    """Finds smallest and largest pixel of a window that slides along rows: pixels are loaded once for both."""
    for row in range(rows):
        pixels, smallest, largest = source[row], low[row], high[row]
        for x in range(width):
            least = most = pixels[x]
            for step in range(1, size):
                least, most = min(least, pixels[x + step]), max(most, pixels[x + step])
            smallest[x], largest[x] = least, most


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


@numba.njit(inline="always")
def _slide_down(extreme, size, source, target, rows, width):  # type: ignore[no-untyped-def]
    """Slides the window down columns; see `_slide_along`."""
    for row in range(rows):
        result = target[row]
        for x in range(width):
            value = source[row, x]
            for step in range(1, size):
                value = extreme(value, source[row + step, x])
            result[x] = value


@compile_loop
def _smaller(a: float, b: float) -> float:
    return min(a, b)


@compile_loop
def _larger(a: float, b: float) -> float:
    return max(a, b)
