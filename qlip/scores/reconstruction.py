"""Grows what an opening kept back to the objects that it is a part of: greyscale reconstruction.

L. Vincent, "Morphological grayscale reconstruction in image analysis", IEEE Transactions on Image Processing, 1993
(here in a fixed number of sweeps, so that no image takes longer than another).
"""

from __future__ import annotations

import numpy as np

ROUNDS = 1
"""Rounds of sweeps in all directions. One reaches what lies straight ahead or within 45 degrees of it; each more, what
is around one more corner, which answered no better (docs/results/objects.md)."""

MEMORY = 2**21
"""Most pixels that are swept at once, each laid out five times; other planes wait. Memory in one piece, and not too
large, is what a process gets back from itself instead of from the system, page by page."""


def reconstruct(
    marker: np.ndarray, mask: np.ndarray, rounds: int = ROUNDS, *, out: np.ndarray | None = None
) -> np.ndarray:
    """Raises the pixels of `marker` to their neighbours' values, as far as `mask` allows.

    A round sweeps down, up, to the right and to the left, each for itself, and takes the largest of the four. A sweep
    raises each line to the one before it, where a pixel has three neighbours: the nearest and the two beside that.
    So the result of a mirrored or a turned image is the result mirrored or turned.

    Args:
        marker: float (planes, H, W), nowhere above `mask`.
        mask: float (planes, H, W).
        rounds: how many; with enough of them nothing changes any more, and the reconstruction is exact.
        out: (planes, H, W), what the result is written to, which may be `marker`; None makes it.

    Returns:
        float (planes, H, W), between the two.
    """
    planes, height, width = mask.shape
    out = np.empty_like(mask) if out is None else out
    room = max(height * (width + 2), width * (height + 2))  # of one plane
    step = min(planes, max(1, MEMORY // max(1, room)))
    memory = np.empty((5, step * room), mask.dtype)
    for first in range(0, planes, step):
        part = slice(first, first + step)
        _grow(marker[part], mask[part], rounds, memory, out[part])
    return out


def _grow(marker: np.ndarray, mask: np.ndarray, rounds: int, memory: np.ndarray, out: np.ndarray) -> None:
    """Reconstructs some planes, in memory for five times as much."""
    out[...] = marker
    kept = memory[4][: out.size].reshape(out.shape)
    for _ in range(rounds):
        for plane, sideways in zip(kept, _sweep(out.swapaxes(1, 2), mask.swapaxes(1, 2), memory), strict=True):
            plane[...] = sideways.T
        np.maximum(_sweep(out, mask, memory), kept, out=out)


def _sweep(marker: np.ndarray, mask: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """Sweeps down and up, each for itself, and takes the larger of both; returns a view of the memory."""
    level, bounds = _lay_out(marker, memory[:2]), _lay_out(mask, memory[2:4])
    _raise_lines(level.reshape(len(level), -1), bounds.reshape(len(level), -1))
    down, up = level[:, 0], level[::-1, 1]
    return np.maximum(down, up, out=down)[..., 1:-1].swapaxes(0, 1)


def _lay_out(planes: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """Lays planes out for a sweep down and one up at once: (planes, lines, length) -> (lines, 2, planes, length + 2).

    What is next in both sweeps is one piece of memory: a line of all planes, and the one as far from the end. Each part
    is between two pixels of -infinity.
    """
    count, lines, length = planes.shape
    laid = memory.reshape(-1)[: 2 * lines * count * (length + 2)].reshape(lines, 2, count, length + 2)
    down = laid[:, 0]
    down[..., 0] = down[..., -1] = -np.inf
    for plane, target in zip(planes, down.swapaxes(0, 1), strict=True):  # one by one: twice as fast if they are turned
        target[:, 1:-1] = plane
    laid[:, 1] = down[::-1]
    return laid


def _raise_lines(level: np.ndarray, bounds: np.ndarray) -> None:
    """Raises each line to the one before it, at most to its bounds, where -infinity stays."""
    left, middle, right, bounds = level[:, :-2], level[:, 1:-1], level[:, 2:], bounds[:, 1:-1]
    near = np.empty_like(middle[0])
    for before, same, after, line, bound in zip(left, middle, right, middle[1:], bounds[1:], strict=False):
        np.maximum(before, after, out=near)
        np.maximum(same, near, out=near)
        np.maximum(line, near, out=near)
        np.minimum(bound, near, out=line)
