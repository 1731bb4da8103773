"""Scores by differences of neighbouring pixels: the paper's "gradient", and the authors' "diagonal".

Where a pixel's difference reaches across its cell's edge, it counts only in blocks that hold both cells. A cell is
therefore summarised by eight maxima, which merge into those of its parent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from qlip.kernels import find_loops
from qlip.scores.arrays import Array, cell_max, empty, in_cells, largest, namespace, quarters

# The order of a summary. "Joined" takes the neighbour beyond the edge as present.
INNER, RIGHT, RIGHT_JOINED, BOTTOM, BOTTOM_JOINED, CORNER_RIGHT, CORNER_BOTTOM, CORNER_BOTH = range(8)

SUMMARY_BAND = 2**18
"""Pixels summarised at once on a CPU, so that intermediate results stay in its cache."""

Summarise = Callable[[Array, int, int, int], Array]
"""(image, first row of pixels, last, patch size) -> the summary (8, rows, cols) of the cells between."""


def gradient_scores(image: Array, patch_size: int, levels: int) -> list[Array]:
    """Computes max over channels and pixels of |d/drow| + |d/dcol|, by level from 1 (paper section 3.1).

    Forward differences; at a block's last row (column) the missing vertical (horizontal) difference counts as zero.
    """
    if loops := find_loops(image):
        summary, is_finite = loops.summarise_gradient(np.ascontiguousarray(image), patch_size)
        if is_finite:  # compiled maxima differ from numpy's for NaN and infinity
            return merge_edges(summary, levels)
    return merge_edges(_summarise(image, patch_size, _summarise_gradient), levels)


def diagonal_scores(image: Array, patch_size: int, levels: int) -> list[Array]:
    """Computes max over channels and pixels of I[r+1, c+1] - I[r, c], signed, the authors' "deriv"; at least 0."""
    return merge_edges(_summarise(image, patch_size, _summarise_diagonal), levels)


def merge_edges(summary: Array, levels: int) -> list[Array]:
    """Merges an edge summary (8, rows, cols) upwards into the scores of levels 1 to `levels`, at least 0."""
    stack = namespace(summary).stack
    scores = []
    for _ in range(levels):
        a, b, c, d = quarters(summary)  # top left, top right, bottom left, bottom right
        summary = stack(
            [
                largest(
                    *(a[INNER], b[INNER], c[INNER], d[INNER]),
                    *(a[RIGHT_JOINED], c[RIGHT_JOINED], a[BOTTOM_JOINED], b[BOTTOM_JOINED], a[CORNER_BOTH]),
                ),
                largest(b[RIGHT], d[RIGHT], b[CORNER_BOTTOM]),
                largest(b[RIGHT_JOINED], d[RIGHT_JOINED], b[CORNER_BOTH]),
                largest(c[BOTTOM], d[BOTTOM], c[CORNER_RIGHT]),
                largest(c[BOTTOM_JOINED], d[BOTTOM_JOINED], c[CORNER_BOTH]),
                *d[CORNER_RIGHT:],
            ]
        )
        scores.append(largest(summary[INNER], summary[RIGHT], summary[BOTTOM]).clip(0))
    return scores


def _summarise(image: Array, patch_size: int, summarise: Summarise) -> Array:
    """Computes the summary (8, rows, cols) of an image; on a CPU by bands of its rows."""
    channels, height, width = image.shape
    rows = height // patch_size
    if isinstance(image, Tensor):
        return summarise(image, 0, height, patch_size)
    step = max(1, SUMMARY_BAND // (channels * patch_size * width))
    summary = empty(image, 8, rows, width // patch_size)
    for top in range(0, rows, step):
        bottom = min(rows, top + step)
        summary[:, top:bottom] = summarise(image, top * patch_size, bottom * patch_size, patch_size)
    return summary


def _summarise_gradient(image: Array, first: int, last: int, patch_size: int) -> Array:
    """Summarises |d/drow| + |d/dcol|; see `Summarise`."""
    xp, end = namespace(image), patch_size - 1
    band, below = image[:, first:last], image[:, first + 1 : last + 1]
    down, across = steps = empty(image, 2, *band.shape)
    reach = below.shape[1]
    xp.subtract(below, band[:, :reach], out=down[:, :reach])
    xp.subtract(band[:, :, 1:], band[:, :, :-1], out=across[:, :, :-1])
    down[:, reach:], across[:, :, -1] = 0, 0
    xp.abs(steps, out=steps)
    down_only = xp.amax(down[:, :, end::patch_size], 0)  # (rows P, cols): last columns
    down_only = down_only.reshape(-1, patch_size, down_only.shape[1])
    across_only = xp.amax(across[:, end::patch_size], 0)  # (rows, cols P): last rows
    across_only = across_only.reshape(len(across_only), -1, patch_size)
    both = in_cells(largest(*xp.add(down, across, out=down)), patch_size)
    above = xp.amax(both[:, :-1], 1)  # (rows, cols, P): each column's maximum above the last row
    return xp.stack(
        [
            xp.amax(above[:, :, :-1], 2),
            xp.amax(down_only[:, :-1], 1),
            above[:, :, end],
            xp.amax(across_only[:, :, :-1], 2),
            xp.amax(both[:, end, :, :-1], 2),
            across_only[:, :, end],
            down_only[:, end],
            both[:, end, :, end],
        ]
    )


def _summarise_diagonal(image: Array, first: int, last: int, patch_size: int) -> Array:
    """Summarises I[r+1, c+1] - I[r, c]; see `Summarise`."""
    xp, end = namespace(image), patch_size - 1
    below = image[:, first + 1 : last + 1]
    steps = below[:, :, 1:] - image[:, first : first + below.shape[1], :-1]
    step = empty(image, last - first, image.shape[2])
    step[steps.shape[1] :], step[:, -1] = -xp.inf, -xp.inf
    step[: steps.shape[1], :-1] = largest(*steps)
    step = in_cells(step, patch_size)
    absent = xp.full_like(step[:, end, :, end], -xp.inf)
    return xp.stack(
        [
            cell_max(step[:, :-1, :, :-1]),
            absent,
            xp.amax(step[:, :-1, :, end], 1),
            absent,
            xp.amax(step[:, end, :, :-1], 2),
            absent,
            absent,
            step[:, end, :, end],
        ]
    )
