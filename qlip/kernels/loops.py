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
from qlip.kernels.objects import find_object_hats
from qlip.kernels.resizing import resize_image

__all__ = [
    "find_cell_hats",
    "find_medians",
    "find_object_hats",
    "resample",
    "resize_image",
    "summarise_gradient",
]


FINITE = np.uint32(0x7F800000)
"""The bits of a finite float32, without its sign, are below those of infinity."""


def summarise_gradient(image: np.ndarray, patch_size: int) -> tuple[np.ndarray, bool]:
    """Summarises |d/drow| + |d/dcol| of whole cells: float32 (C, H, W) -> (8, rows, cols), see `qlip.scores.edges`.

    Args:
        image: contiguous.
        patch_size: side of a cell in pixels.

    Returns:
        The summary, and whether all pixels are finite, without which it has no meaning.
    """
    return _make_summary(len(image))(image, patch_size)


@cache
def _make_summary(channels: int) -> Kernel:
    """Compiles `summarise_gradient` for one number of channels."""

    def summarise(image: np.ndarray, patch_size: int) -> tuple[np.ndarray, bool]:
        height, width = image.shape[1:]
        flat, pitch, plane, right = image.reshape(-1), np.uint64(width), np.uint64(height * width), np.uint64(width - 1)
        rows, cols, end = height // patch_size, width // patch_size, patch_size - 1
        summary = np.zeros((8, rows, cols), np.float32)
        down, across, both = np.empty(width, np.float32), np.zeros(width, np.float32), np.empty(width, np.float32)
        above, higher = np.empty(width, np.float32), np.empty(width, np.float32)
        for row in range(rows):
            above[:] = 0
            for line in range(patch_size):
                y = row * patch_size + line
                start, step = np.uint64(y * width), pitch if y + 1 < height else np.uint64(0)
                for x in range(right):
                    most_down = most_across = most_both = np.float32(0)
                    for channel in range(channels):
                        place = np.uint64(channel) * plane + start + x
                        vertical = abs(flat[place + step] - flat[place])
                        horizontal = abs(flat[place + np.uint64(1)] - flat[place])
                        sum_of_both = vertical + horizontal
                        most_down = vertical if vertical > most_down else most_down
                        most_across = horizontal if horizontal > most_across else most_across
                        most_both = sum_of_both if sum_of_both > most_both else most_both
                    down[x], across[x], both[x] = most_down, most_across, most_both
                most_down = np.float32(0)
                for channel in range(channels):
                    place = np.uint64(channel) * plane + start + right
                    most_down = max(most_down, abs(flat[place + step] - flat[place]))
                down[right] = both[right] = most_down
                if line < end:
                    for x in range(width):
                        higher[x] = both[x] if both[x] > above[x] else above[x]
                    above, higher = higher, above
                    for col in range(cols):
                        summary[1, row, col] = max(summary[1, row, col], down[col * patch_size + end])
            for col in range(cols):
                left, last = col * patch_size, col * patch_size + end
                summary[0, row, col], summary[2, row, col] = above[left:last].max(), above[last]
                summary[3, row, col], summary[4, row, col] = across[left:last].max(), both[left:last].max()
                summary[5, row, col], summary[6, row, col] = across[last], down[last]
                summary[7, row, col] = both[last]
        bits, largest = flat.view(np.uint32), np.uint32(0)
        for index in range(bits.size):
            largest = max(largest, bits[index] & np.uint32(0x7FFFFFFF))
        return summary, bool(largest < FINITE)

    return compile_loop(summarise, channels)


def resample(
    image: np.ndarray, boxes: np.ndarray, chosen: np.ndarray, size: int, weights: np.ndarray, patches: np.ndarray
) -> None:
    """Resamples leaves of `size` cells a side into their patches: up to rounding, the product with all weights.

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
