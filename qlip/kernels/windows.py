"""Windows that slide over bands of an image from one buffer to another, compiled by numba.

See `qlip.kernels.loops` for what compiles to vector instructions.
"""

from __future__ import annotations

import numba
import numpy as np

from qlip.kernels.compiling import compile_loop

BAND = 2**16
"""Pixels of one channel that are opened at once, so that they stay in a core's cache."""


@numba.njit(inline="always")
def read_band(image, halves, start, lines, height, width, reach, pixels):  # type: ignore[no-untyped-def]
    """Reads lines from `start`, extends them by the image's border, and counts the pixels that are not finite."""
    beyond = 0
    for line in range(lines):
        target = pixels[line]
        inner = target[reach:]
        read_line(image, halves, min(max(start + line, 0), height - 1), width, inner)
        for x in range(width):
            beyond += not abs(inner[x]) < np.inf
        target[:reach] = target[reach]
        target[reach + width :] = target[reach + width - 1]
    return beyond


@numba.njit(inline="always")
def read_line(image, halves, line, width, target):  # type: ignore[no-untyped-def]
    """Reads one line of an image, or of the image halved."""
    if halves:
        halve_lines(image[2 * line], image[2 * line + 1], width, target)
    else:
        for x in range(width):  # assigning a slice takes 4 s longer to compile
            target[x] = image[line, x]


@compile_loop
def halve_lines(upper: np.ndarray, lower: np.ndarray, count: int, target: np.ndarray) -> None:
    """Averages `count` times 2 x 2 pixels of two lines, in the order of `torch.nn.functional.avg_pool2d`."""
    for x in range(count):
        total = ((upper[2 * x] + upper[2 * x + 1]) + lower[2 * x]) + lower[2 * x + 1]
        target[x] = total * np.float32(0.25)


@numba.njit(inline="always")
def open_across(size, pixels, low, high, eroded, dilated, lines, width):  # type: ignore[no-untyped-def]
    """Opens and closes a band of `lines`, as `read_band` extends it, but for the last window down the columns.

    What `slide_down` then finds is the opening, as the largest of `low`, and the closing, as the smallest of `high`.
    """
    reach = size - 1
    find_extremes(size, pixels, low, high, lines, width + reach)
    slide_down(smaller, size, low, eroded, lines - reach, width + reach)
    slide_down(larger, size, high, dilated, lines - reach, width + reach)
    slide_along(larger, size, eroded, low, lines - reach, width)
    slide_along(smaller, size, dilated, high, lines - reach, width)


@numba.njit(inline="always")
def slide_along(extreme, size, source, target, rows, width):  # type: ignore[no-untyped-def]
    """Slides a window of `size` pixels, which begins at its pixel, along rows, and takes their extreme."""
    for row in range(rows):
        pixels, result = source[row], target[row]
        for x in range(width):
            value = pixels[x]
            for step in range(1, size):
                value = extreme(value, pixels[x + step])
            result[x] = value


@numba.njit(inline="always")
def find_extremes(size, source, low, high, rows, width):  # type: ignore[no-untyped-def]
    """Finds smallest and largest pixel of a window that slides along rows: pixels are loaded once for both."""
    for row in range(rows):
        pixels, smallest, largest = source[row], low[row], high[row]
        for x in range(width):
            least = most = pixels[x]
            for step in range(1, size):
                least, most = min(least, pixels[x + step]), max(most, pixels[x + step])
            smallest[x], largest[x] = least, most


@numba.njit(inline="always")
def slide_down(extreme, size, source, target, rows, width):  # type: ignore[no-untyped-def]
    """Slides the window down columns; see `slide_along`."""
    for row in range(rows):
        result = target[row]
        for x in range(width):
            value = source[row, x]
            for step in range(1, size):
                value = extreme(value, source[row + step, x])
            result[x] = value


@compile_loop
def smaller(a: float, b: float) -> float:
    return min(a, b)


@compile_loop
def larger(a: float, b: float) -> float:
    return max(a, b)
