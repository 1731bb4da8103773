"""Loops over pixels that numba compiles: the same bits as numpy's in `qlip.scores` and `qlip.patches`, where a
docstring does not say otherwise.

A loop that runs along memory compiles to vector instructions only if its source and its target are different arrays
and no index can be negative; so windows are slid from one buffer to another, and places are counted without sign.
The side of a window, of leaves and of patches is a constant of the compiled code, which unrolls the loops over it.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from qlip.kernels.compiling import Kernel, compile_loop
from qlip.kernels.hats import find_cell_hats
from qlip.kernels.noise import find_medians
from qlip.kernels.resizing import resize_image

__all__ = ["find_cell_hats", "find_medians", "resample", "resize_image", "summarise_gradient"]


@compile_loop
def summarise_gradient(image: np.ndarray, patch_size: int) -> tuple[np.ndarray, bool]:
    """Summarises |d/drow| + |d/dcol| of whole cells: float32 (C, H, W) -> (8, rows, cols), see `qlip.scores.edges`.

    Returns:
        The summary, and whether all sums are finite, without which it has no meaning.
    """
    channels, height, width = image.shape
    rows, cols, end = height // patch_size, width // patch_size, patch_size - 1
    summary = np.zeros((8, rows, cols), np.float32)
    down, across = np.empty(width, np.float32), np.empty(width, np.float32)
    both, above = np.empty(width, np.float32), np.empty(width, np.float32)
    beyond = 0
    for row in range(rows):
        above[:] = 0
        for line in range(patch_size):
            y = row * patch_size + line
            down[:], across[:], both[:] = 0, 0, 0
            for channel in range(channels):
                pixels, below = image[channel, y], image[channel, min(y + 1, height - 1)]
                for x in range(width - 1):
                    vertical, horizontal = abs(below[x] - pixels[x]), abs(pixels[x + 1] - pixels[x])
                    down[x], across[x] = max(down[x], vertical), max(across[x], horizontal)
                    both[x] = max(both[x], vertical + horizontal)
                    beyond += not vertical + horizontal < np.inf
                vertical = abs(below[width - 1] - pixels[width - 1])
                beyond += not vertical < np.inf
                down[width - 1], both[width - 1] = max(down[width - 1], vertical), max(both[width - 1], vertical)
            if line < end:
                for x in range(width):
                    above[x] = max(above[x], both[x])
                for col in range(cols):
                    summary[1, row, col] = max(summary[1, row, col], down[col * patch_size + end])
        for col in range(cols):
            left, last = col * patch_size, col * patch_size + end
            summary[0, row, col], summary[2, row, col] = above[left:last].max(), above[last]
            summary[3, row, col], summary[4, row, col] = across[left:last].max(), both[left:last].max()
            summary[5, row, col], summary[6, row, col], summary[7, row, col] = across[last], down[last], both[last]
    return summary, beyond == 0


def resample(
    image: np.ndarray, boxes: np.ndarray, chosen: np.ndarray, size: int, weights: np.ndarray, patches: np.ndarray
) -> None:
    """Resamples leaves of `size` cells a side into their patches: to rounding the product with all weights.

    This holds for finite pixels: others may also show beside the leaf's edge, where their weight is 0.

    Args:
        image: float32 (C, H, W), contiguous.
        boxes: int64 (N, 3), the leaves: row, col, size in cells. They must lie inside the image.
        chosen: int64 (n,): those that are resampled, all of `size`.
        size: side of these leaves in cells.
        weights: float32 (P, size P), see `qlip.patches.antialias_weights`.
        patches: float32 (N, C, P, P), contiguous; the chosen ones are written.
    """
    taps = _find_taps(weights, size)
    along = np.tile(taps, image.shape[2] // (size * len(weights)))  # of all leaves that fit into a row
    _make_resampling(size, len(weights))(image, boxes, chosen, taps, along, patches)


def _find_taps(weights: np.ndarray, size: int) -> np.ndarray:
    """Lists the weights (P, size P) of the 2 size pixels from p size - size / 2 that reach sample p: (2 size, P)."""
    taps = np.zeros((2 * size, len(weights)), np.float32)
    for sample, row in enumerate(weights):
        first = sample * size - size // 2
        inside = slice(max(first, 0), min(first + 2 * size, len(row)))
        taps[inside.start - first : inside.stop - first, sample] = row[inside]
    return taps


@cache
def _make_resampling(size: int, patch_size: int) -> Kernel:
    """Compiles `resample` for one size of leaves and patches: leaves that follow each other in a row at once."""
    side, taps, margin = size * patch_size, 2 * size, size // 2

    def resample(
        image: np.ndarray,
        boxes: np.ndarray,
        chosen: np.ndarray,
        weights: np.ndarray,
        along: np.ndarray,
        patches: np.ndarray,
    ) -> None:
        channels, height, width = image.shape
        flat, pitch = image.reshape(-1), np.uint64(width)
        down = np.zeros(width + taps, np.float32)  # one row of samples; the margin stays 0
        inner, samples = down[margin:], np.empty(width // size, np.float32)
        begin = 0
        while begin < len(chosen):
            first_row, first_col = boxes[chosen[begin], 0], boxes[chosen[begin], 1]
            end = begin + 1
            while (
                end < len(chosen)
                and boxes[chosen[end], 0] == first_row
                and boxes[chosen[end], 1] == first_col + (end - begin) * size
            ):
                end += 1
            extent, count = np.uint64((end - begin) * side), np.uint64((end - begin) * patch_size)
            for channel in range(channels):
                corner = (channel * height + first_row * patch_size) * width + first_col * patch_size
                for row in range(patch_size):
                    first = row * size - margin
                    if first >= 0 and first + taps <= side:
                        start = np.uint64(corner + first * width)
                        for x in range(extent):
                            total = weights[0, row] * flat[start + x]
                            for tap in range(1, taps):
                                total += weights[tap, row] * flat[start + np.uint64(tap) * pitch + x]
                            inner[x] = total
                    else:
                        inner[:extent] = 0
                        for tap in range(max(0, -first), min(taps, side - first)):
                            start = np.uint64(corner + (first + tap) * width)
                            for x in range(extent):
                                inner[x] += weights[tap, row] * flat[start + x]
                    inner[extent : extent + np.uint64(margin)] = 0  # of a longer row of leaves before
                    for place in range(count):
                        total = along[0, place] * down[place * np.uint64(size)]
                        for tap in range(1, taps):
                            total += along[tap, place] * down[place * np.uint64(size) + np.uint64(tap)]
                        samples[place] = total
                    for leaf in range(begin, end):
                        patch = patches[chosen[leaf], channel, row]
                        for col in range(patch_size):
                            patch[col] = samples[(leaf - begin) * patch_size + col]
            begin = end

    return compile_loop(resample, f"{size}_{patch_size}")
