"""The sweeps of greyscale reconstruction, compiled by numba: the bits of numpy's in `qlip.scores.reconstruction`."""

from __future__ import annotations

import numba
import numpy as np

from qlip.kernels.compiling import compile_loop

TILE = 16
"""Side of the squares that are transposed at once, so that they stay in a core's cache: a float32 cache line."""


@compile_loop
def grow_plane(level: np.ndarray, bound: np.ndarray, rounds: int, spare: np.ndarray) -> None:
    """Raises pixels to their neighbours in sweeps down, up, to the right and to the left, at most to the bound.

    Args:
        level: float32 (H, W), contiguous, nowhere above the bound; changed in place.
        bound: float32 (H, W), contiguous.
        rounds: how often the largest of the four is taken.
        spare: float32 (4, H * W), memory that is overwritten.
    """
    height, width = bound.shape
    turned, turned_bound = spare[0].reshape((width, height)), spare[1].reshape((width, height))
    upright, right = spare[2].reshape((height, width)), spare[3].reshape((width, height))
    _transpose(bound, turned_bound)
    for _ in range(rounds):
        _transpose(level, turned)
        _sweep(level, bound, upright)
        _sweep(turned, turned_bound, right)
        _transpose(turned, upright)
        for line in range(height):
            for x in range(width):
                level[line, x] = max(level[line, x], upright[line, x])


@compile_loop
def _sweep(level: np.ndarray, bound: np.ndarray, down: np.ndarray) -> None:
    """Raises each line to the one before it, down and, in another copy, up; the level becomes the larger of both."""
    lines, length = level.shape
    before, after = np.full(length + 2, -np.inf, np.float32), np.full(length + 2, -np.inf, np.float32)
    for line in range(lines):
        _raise_line(level[line], bound[line], before, after, length)
        for x in range(length):
            down[line, x] = after[x + 1]
        before, after = after, before
    before[:] = -np.inf
    for line in range(lines - 1, -1, -1):
        _raise_line(level[line], bound[line], before, after, length)
        for x in range(length):
            level[line, x] = max(after[x + 1], down[line, x])
        before, after = after, before


@numba.njit(inline="always")
def _raise_line(line, bound, before, after, length):  # type: ignore[no-untyped-def]
    """Raises a line to its neighbours in the line before it; both are kept between two pixels of -infinity."""
    for x in range(length):
        above = max(max(before[x], before[x + 2]), before[x + 1])
        after[x + 1] = min(max(line[x], above), bound[x])


@compile_loop
def _transpose(source: np.ndarray, target: np.ndarray) -> None:
    """Copies rows to columns, square by square."""
    height, width = source.shape
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            for x in range(left, min(left + TILE, width)):
                for y in range(top, min(top + TILE, height)):
                    target[x, y] = source[y, x]
