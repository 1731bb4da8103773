"""The sweeps of greyscale reconstruction, compiled by numba: the bits of numpy's in `qlip.scores.reconstruction`."""

from __future__ import annotations

import numpy as np

from qlip.kernels.compiling import compile_loop

TILE = 8
"""Side of the squares that are transposed at once, so that they stay in a core's registers and cache."""


@compile_loop
def grow_plane(
    level: np.ndarray, bound: np.ndarray, turned_bound: np.ndarray, rounds: int, turned: np.ndarray, spare: np.ndarray
) -> None:
    """Raises pixels to their neighbours in sweeps down, up, to the right and to the left, at most to the bound.

    All arrays are float32 and contiguous.

    Args:
        level: (H, W), nowhere above the bound; changed in place.
        bound: (H, W).
        turned_bound: (W, H), the bound transposed.
        rounds: how often the largest of the four is taken.
        turned: (W, H), memory that is overwritten.
        spare: (H, W), memory that is overwritten.
    """
    height, width = bound.shape
    for _ in range(rounds):
        transpose(level, turned)
        _sweep(level, bound, spare)
        _sweep(turned, turned_bound, spare.reshape((width, height)))
        transpose(turned, spare)
        for line in range(height):
            for x in range(width):
                level[line, x] = max(level[line, x], spare[line, x])


@compile_loop
def _sweep(level: np.ndarray, bound: np.ndarray, spare: np.ndarray) -> None:
    """Raises each line to the one before it, down and, in another copy, up; the level becomes the larger of both."""
    lines, length = level.shape
    # Each line between two pixels of -infinity.
    before, after = np.full(length + 2, -np.inf, np.float32), np.full(length + 2, -np.inf, np.float32)
    for line in range(lines):
        own, limit, down = level[line], bound[line], spare[line]
        for x in range(length):
            near = max(max(before[x], before[x + 2]), before[x + 1])
            after[x + 1] = down[x] = min(max(own[x], near), limit[x])
        before, after = after, before
    before[:] = -np.inf
    for line in range(lines - 1, -1, -1):
        own, limit, down = level[line], bound[line], spare[line]
        for x in range(length):
            near = max(max(before[x], before[x + 2]), before[x + 1])
            after[x + 1] = raised = min(max(own[x], near), limit[x])
            own[x] = max(raised, down[x])
        before, after = after, before


@compile_loop
def transpose(source: np.ndarray, target: np.ndarray) -> None:
    """Copies rows to columns: (H, W) -> (W, H), square by square."""
    height, width = source.shape
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            if top + TILE <= height and left + TILE <= width:  # loops of a fixed length, which are unrolled
                for y in range(TILE):
                    for x in range(TILE):
                        target[left + x, top + y] = source[top + y, left + x]
            else:
                for y in range(top, min(top + TILE, height)):
                    for x in range(left, min(left + TILE, width)):
                        target[x, y] = source[y, x]
