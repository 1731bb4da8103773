"""Hats by reconstruction, level by level, compiled by numba: the same bits as `qlip.scores.structure`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from qlip.kernels.compiling import Kernel, compile_loop
from qlip.kernels.growing import grow_plane, transpose
from qlip.kernels.windows import BAND, larger, open_across, read_band, slide_down, smaller


def find_object_hats(
    image: np.ndarray, patch_size: int, size: int, floors: Sequence[np.ndarray], rounds: int
) -> list[np.ndarray] | None:
    """Computes as `qlip.kernels.hats.find_cell_hats`, with opening and closing by reconstruction.

    The arguments and what is returned are that function's, and `rounds` of sweeps (`qlip.kernels.growing`).
    """
    hats = []
    memory = np.empty(6 * (image.shape[1] // 2) * (image.shape[2] // 2), np.float32)
    for floor in floors:
        height, width = image.shape[1] // 2, image.shape[2] // 2
        halved = np.empty((len(image), height, width), np.float32)
        own = np.zeros((height // patch_size, width // patch_size), np.float32)
        upright = memory[: 4 * height * width].reshape(4, height, width)
        turned = memory[4 * height * width : 6 * height * width].reshape(2, width, height)
        step = min(height, max(1, BAND // (width + 2 * size)))  # lines that are opened at once
        find = _make_object_hats(size)
        if own.size and not find(image, patch_size, floor, rounds, step, own, halved, upright, turned):
            return None
        hats.append(own)
        image = halved
    return hats


@cache
def _make_object_hats(size: int) -> Kernel:
    """Compiles one level of `find_object_hats` for one size of window.

    The compiled function halves the image of the level before, and overwrites memory for four planes as they are and
    two transposed ones. It returns whether all pixels are finite.
    """
    reach = size - 1

    def find(
        image: np.ndarray,
        patch_size: int,
        floor: np.ndarray,
        rounds: int,
        step: int,
        hats: np.ndarray,
        halved: np.ndarray,
        upright: np.ndarray,
        turned: np.ndarray,
    ) -> bool:
        channels, height, width = halved.shape
        most, pitch = step + 2 * reach, width + 2 * reach
        pixels = np.empty((most, pitch), np.float32)
        low, high = np.empty((most, pitch), np.float32), np.empty((most, pitch), np.float32)
        eroded, dilated = np.empty((most, pitch), np.float32), np.empty((most, pitch), np.float32)
        negative, opened, closed, spare = upright[0], upright[1], upright[2], upright[3]
        for channel in range(channels):
            plane, beyond = halved[channel], 0
            for top in range(0, height, step):
                lines = min(step, height - top)
                wide = lines + 2 * reach
                beyond += read_band(image[channel], True, top - reach, wide, height, width, reach, pixels)
                open_across(size, pixels, low, high, eroded, dilated, wide, width)
                slide_down(larger, size, low, opened[top:], lines, width)
                slide_down(smaller, size, high, closed[top:], lines, width)
                for line in range(lines):
                    own, target, mirrored = pixels[line + reach][reach:], plane[top + line], negative[top + line]
                    for x in range(width):
                        target[x], mirrored[x] = own[x], -own[x]
            if beyond:
                return False
            transpose(plane, turned[0])
            grow_plane(opened, plane, turned[0], rounds, turned[1], spare)
            _negate(closed)  # a closing is the opening of the negative
            _negate(turned[0])
            grow_plane(closed, negative, turned[0], rounds, turned[1], spare)
            _raise_to_cells(plane, opened, closed, patch_size, floor[channel], hats)
        return True

    return compile_loop(find, size)


@compile_loop
def _negate(plane: np.ndarray) -> None:
    """Changes the sign of all pixels."""
    for line in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            plane[line, x] = -plane[line, x]


@compile_loop
def _raise_to_cells(
    pixels: np.ndarray, opened: np.ndarray, closed: np.ndarray, patch_size: int, floor: float, hats: np.ndarray
) -> None:
    """Raises each cell to its highest hat less the floor; the closing is given negated."""
    rows, cols = hats.shape
    highest = np.empty(cols * patch_size, np.float32)
    for row in range(rows):
        highest[:] = 0
        for line in range(row * patch_size, (row + 1) * patch_size):
            for x in range(cols * patch_size):
                own = pixels[line, x]
                highest[x] = max(highest[x], max(own - opened[line, x], -own - closed[line, x]))
        for col in range(cols):
            hats[row, col] = max(hats[row, col], highest[col * patch_size : (col + 1) * patch_size].max() - floor)
