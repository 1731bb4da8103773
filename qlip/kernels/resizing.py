"""Pillow's bicubic resizing of RGB images, compiled by numba: the same bits, several times as fast.

Pillow resizes along rows, rounds to 8 bits, then along columns, with weights of 22 bits after the point. Here both are
one operation, a weighted sum of rows, which compiles to vector instructions: for the first pass some lines of the image
are transposed, so that its columns are rows.
"""

from __future__ import annotations

import numpy as np

from qlip.kernels.compiling import compile_loop

BITS = 22
"""Bits of a weight after the point: 8 bits of a pixel and a sign leave room for a sum up to 2."""
RADIUS = 2.0
"""Pixels of the coarser grid that the cubic reaches to either side."""
LINES = 64
"""Lines that are transposed at once: more would leave a core's cache."""


@compile_loop
def resize_image(pixels: np.ndarray, box: tuple[float, float, float, float], width: int, height: int) -> np.ndarray:
    """Resizes a part of an image as `Image.resize(..., Image.Resampling.BICUBIC, box=box)` does.

    Args:
        pixels: uint8 (H, W, 3), contiguous.
        box: left, top, right and bottom of the part, inside the image.
        width: columns of the result, at least 1.
        height: rows of the result, at least 1.

    Returns:
        uint8 (height, width, 3).
    """
    left, top, right, bottom = box
    columns, across = _find_taps(pixels.shape[1], left, right, width)
    rows, down = _find_taps(pixels.shape[0], top, bottom, height)
    first, last = rows[0, 0], rows[-1, 0] + rows[-1, 1]  # of the lines that are read
    narrow = _resize_rows(pixels, first, last, columns, across)
    resized = np.empty((height, 3 * width), np.uint8)
    total = np.empty(3 * width, np.int32)
    for row in range(height):
        _sum_weighted(narrow, rows[row, 0] - first, rows[row, 1], down[row], total, resized[row])
    return resized.reshape(height, width, 3)


@compile_loop
def _find_taps(length: int, begin: float, end: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the pixels that make each of `count` samples of an interval, and their weights, in Pillow's arithmetic.

    Returns:
        int64 (count, 2), the first pixel and their number; int32 (count, most), the weights times 2^22.
    """
    start = np.float32(begin)  # Pillow's borders are of single precision
    scale = np.float64(np.float32(end) - start) / count
    stretch = max(scale, 1.0)
    reach = RADIUS * stretch
    most = int(np.ceil(reach)) * 2 + 1
    spans, weights = np.empty((count, 2), np.int64), np.zeros((count, most), np.int32)
    exact = np.empty(most, np.float64)
    for sample in range(count):
        centre = start + (sample + 0.5) * scale
        first = max(int(centre - reach + 0.5), 0)
        number = min(int(centre + reach + 0.5), length) - first
        total = 0.0
        for tap in range(number):
            exact[tap] = _cubic((tap + first - centre + 0.5) * (1.0 / stretch))
            total += exact[tap]
        for tap in range(number):
            weight = (exact[tap] / total if total != 0.0 else exact[tap]) * (1 << BITS)
            weights[sample, tap] = int(weight - 0.5 if weight < 0 else weight + 0.5)
        spans[sample, 0], spans[sample, 1] = first, number
    return spans, weights


@compile_loop
def _cubic(x: float) -> float:
    """Computes the cubic convolution kernel with a = -1/2 (Keys 1981)."""
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2.0 else 0.0


@compile_loop
def _resize_rows(pixels: np.ndarray, first: int, last: int, columns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Resizes lines `first` to `last` (excluded) along the row: (last - first, 3 x samples)."""
    left, right, samples = columns[0, 0], columns[-1, 0] + columns[-1, 1], len(columns)
    lines = np.uint64(LINES * 3)
    source, result = np.empty((right - left, lines), np.uint8), np.empty((samples, lines), np.uint8)
    resized, total = np.empty((last - first, 3 * samples), np.uint8), np.empty(lines, np.int32)
    for top in range(first, last, LINES):
        count = min(LINES, last - top)
        _transpose(pixels.reshape(-1), (top * pixels.shape[1] + left) * 3, 3 * pixels.shape[1], count, source)
        for sample in range(samples):
            _sum_weighted(source, columns[sample, 0] - left, columns[sample, 1], weights[sample], total, result[sample])
        _transpose_back(result, count, resized[top - first : top - first + count])
    return resized


@compile_loop
def _sum_weighted(
    rows: np.ndarray, first: int, number: int, weights: np.ndarray, total: np.ndarray, result: np.ndarray
) -> None:
    """Writes the weighted sum of `number` rows from `first`, rounded and clipped to 8 bits; `total` is its memory."""
    total[:] = np.int32(1 << (BITS - 1))
    for tap in range(number):
        row, weight = rows[first + tap], weights[tap]
        for place in range(len(total)):
            total[place] += np.int32(row[place]) * weight
    for place in range(len(total)):
        result[place] = np.uint8(min(max(total[place] >> np.int32(BITS), np.int32(0)), np.int32(255)))


@compile_loop
def _transpose(flat: np.ndarray, start: int, pitch: int, count: int, columns: np.ndarray) -> None:
    """Copies `count` lines of RGB pixels, each `pitch` after the last, to columns: (pixels, 3 LINES)."""
    target, step, stop = columns.reshape(-1), np.uint64(columns.shape[1]), np.uint64(columns.size)
    for line in range(count):
        place = np.uint64(start + line * pitch)
        for corner in range(np.uint64(3 * line), stop, step):
            for channel in range(np.uint64(3)):
                target[corner + channel] = flat[place + channel]
            place += np.uint64(3)


@compile_loop
def _transpose_back(columns: np.ndarray, count: int, rows: np.ndarray) -> None:
    """Copies columns (pixels, 3 LINES) to `count` rows of RGB pixels: (count, 3 pixels)."""
    source, step, stop = columns.reshape(-1), np.uint64(columns.shape[1]), np.uint64(columns.size)
    for line in range(count):
        row, place = rows[line], np.uint64(0)
        for corner in range(np.uint64(3 * line), stop, step):
            for channel in range(np.uint64(3)):
                row[place + channel] = source[corner + channel]
            place += np.uint64(3)
