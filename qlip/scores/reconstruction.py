"""Grows what an opening kept back to the objects that it is a part of: greyscale reconstruction.

L. Vincent, "Morphological grayscale reconstruction in image analysis", IEEE Transactions on Image Processing, 1993
(here in a fixed number of sweeps, so that no image takes longer than another).
"""

from __future__ import annotations

import numpy as np

ROUNDS = 1
"""Rounds of sweeps in all directions. One reaches what lies straight ahead or within 45 degrees of it; each more, what
is around one more corner, which answered no better (docs/results/objects.md)."""


def reconstruct(marker: np.ndarray, mask: np.ndarray, rounds: int = ROUNDS) -> np.ndarray:
    """Raises the pixels of `marker` to their neighbours' values, as far as `mask` allows.

    A round sweeps down, up, to the right and to the left, each for itself, and takes the largest of the four. A sweep
    raises each line to the one before it, where a pixel has three neighbours: the nearest and the two beside that.
    So the result of a mirrored or a turned image is the result mirrored or turned.

    Args:
        marker: float (planes, H, W), nowhere above `mask`.
        mask: float (planes, H, W).
        rounds: how many; with enough of them nothing changes any more, and the reconstruction is exact.

    Returns:
        float (planes, H, W), between the two.
    """
    turned = mask.swapaxes(1, 2)
    for _ in range(rounds):
        marker = np.maximum(_sweep(marker, mask), _sweep(marker.swapaxes(1, 2), turned).swapaxes(1, 2))
    return marker


def _sweep(marker: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Sweeps down and up, each for itself, and takes the larger of both."""
    planes, lines, length = mask.shape
    bounds, raised = np.ascontiguousarray(mask.swapaxes(0, 1)), np.empty((planes, length), mask.dtype)
    both = []
    for step in (1, -1):
        grown = np.full((lines, planes, length + 2), -np.inf, mask.dtype)  # a line of all planes is one piece of memory
        grown[..., 1:-1] = marker.swapaxes(0, 1)
        before = grown[::step][0]
        for line, bound in zip(grown[::step][1:], bounds[::step][1:], strict=True):
            np.maximum(before[:, :-2], before[:, 2:], out=raised)
            np.maximum(before[:, 1:-1], raised, out=raised)
            np.maximum(line[:, 1:-1], raised, out=raised)
            np.minimum(bound, raised, out=line[:, 1:-1])
            before = line
        both.append(grown[..., 1:-1])
    return np.maximum(*both).swapaxes(0, 1)
