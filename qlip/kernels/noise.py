"""Medians of an image's finest diagonal detail, compiled by numba: numpy's of `qlip.scores.noise`, by counting."""

from __future__ import annotations

import numpy as np

from qlip.kernels.compiling import compile_loop

HIGHEST = 2 * 255
"""Largest absolute detail of 8-bit pixels."""


@compile_loop
def find_medians(pixels: np.ndarray, step: int, down: int, across: int) -> np.ndarray:
    """Computes the median |a - b - c + d| of squares of 2 x 2 pixels in each region of an image.

    Args:
        pixels: uint8 (H, W, 3), contiguous.
        step: pixels from one square to the next, along rows and columns, at least 2.
        down: rows of regions, at most those of squares.
        across: columns of regions, likewise; squares left over to the right and below are ignored.

    Returns:
        float64 (3, down x across).
    """
    high, wide = len(range(0, pixels.shape[0] - 1, step)) // down, len(range(0, pixels.shape[1] - 1, step)) // across
    flat, pitch = pixels.reshape(-1), 3 * pixels.shape[1]
    counts, medians = np.empty((across, 3, HIGHEST + 1), np.int32), np.empty((3, down * across))
    for row in range(down):
        counts[:] = 0
        for line in range(row * high, (row + 1) * high):
            place = line * step * pitch
            for col in range(across):
                for _ in range(wide):
                    for channel in range(3):
                        a, b = np.int32(flat[place + channel]), np.int32(flat[place + channel + 3])
                        c, d = np.int32(flat[place + pitch + channel]), np.int32(flat[place + pitch + channel + 3])
                        counts[col, channel, abs(a - b - c + d)] += 1
                    place += 3 * step
        for col in range(across):
            for channel in range(3):
                medians[channel, row * across + col] = _find_median(counts[col, channel], high * wide)
    return medians


@compile_loop
def _find_median(counts: np.ndarray, total: int) -> float:
    """Finds the median of `total` values of which `counts` has the number of each."""
    seen, value = counts[0], 0
    while 2 * seen < total:
        value += 1
        seen += counts[value]
    if 2 * seen > total:
        return float(value)
    above = value + 1  # the middle lies between two values
    while counts[above] == 0:
        above += 1
    return (value + above) / 2
