"""Draws the weights of leaves over their image, as heat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from qlip.images.rgb import to_rgb
from qlip.quadtree import Leaves

Frame = tuple[float, float, float, float]
"""(left, top, right, bottom), in shares of an image's width and height."""
FULL_FRAME: Frame = (0.0, 0.0, 1.0, 1.0)

PLASMA = np.array(
    [
        (13, 8, 135),
        (76, 2, 161),
        (126, 3, 168),
        (170, 35, 149),
        (204, 71, 120),
        (230, 108, 92),
        (248, 149, 64),
        (253, 197, 39),
        (240, 249, 33),
    ],
    dtype=np.float32,
)
"""Colours of equal steps, perceptually uniform: every 32nd of matplotlib's "plasma" (van der Walt and Smith, CC0)."""

OPACITY = 0.65
"""Opacity of the greatest weight's colour; that of a weight of 0 is 0."""
RISE = 0.7
"""Exponent from weight share to opacity; below 1, so that weak heat is visible."""
GREY = 0.5
"""Share of grey in the picture below, so that its own colours are not taken for heat."""
SHADE = 0.85
"""Brightness of the picture below."""


def draw_weights(
    image: Image.Image,
    leaves: Leaves,
    weights: Tensor,
    frame: Sequence[float] = FULL_FRAME,
    top: float | None = None,
) -> Image.Image:
    """Fills each leaf with the colour of its weight, more opaque the greater it is, over a paler copy of the image.

    Args:
        image: the image of the leaves, of any mode; drawn upright.
        leaves: N leaves.
        weights: float (N,), not negative.
        frame: where the leaves' grid lies in the image: (left, top, right, bottom) in shares of its width and height;
            what is outside of 0 to 1 is padding.
        top: the weight of the brightest colour; by default the greatest of these.

    Returns:
        A new RGB image of the size of the upright one.

    Raises:
        ValueError: there are not as many weights as leaves, or one is not finite.
    """
    if weights.shape != (len(leaves),):
        raise ValueError(f"weights are {tuple(weights.shape)}; they must be ({len(leaves)},), one for each leaf")
    if not weights.isfinite().all():
        raise ValueError("weights are not all finite numbers; half precision may have overflowed")
    image = to_rgb(image)
    below = np.asarray(image, dtype=np.float32)
    grey = below.mean(2, keepdims=True)
    below = SHADE * (GREY * grey + (1 - GREY) * below)
    top = float(weights.max()) if top is None else top
    share = np.clip(weights.detach().float().cpu().numpy() / (top or 1.0), 0, 1)
    heat = np.zeros(below.shape[:2], dtype=np.float32)
    columns = _edges(leaves.grid[1], frame[0], frame[2], image.width)
    rows = _edges(leaves.grid[0], frame[1], frame[3], image.height)
    for (row, col, size), value in zip(leaves.boxes.tolist(), share, strict=True):
        first, last = (np.clip(edge, 0, leaves.grid[0]) for edge in (row, row + size))
        begin, end = (np.clip(edge, 0, leaves.grid[1]) for edge in (col, col + size))
        heat[rows[first] : rows[last], columns[begin] : columns[end]] = value
    opacity = OPACITY * heat[..., None] ** RISE
    mixed = (1 - opacity) * below + opacity * colour(heat)
    return Image.fromarray(mixed.round().astype(np.uint8))


def colour(share: np.ndarray) -> np.ndarray:
    """Finds the colours, float32 (..., 3) in 0 to 255, of numbers in [0, 1]."""
    place = np.clip(share, 0, 1) * (len(PLASMA) - 1)
    below = np.minimum(place.astype(np.int64), len(PLASMA) - 2)
    part = (place - below)[..., None].astype(np.float32)
    return (1 - part) * PLASMA[below] + part * PLASMA[below + 1]


def _edges(cells: int, begin: float, end: float, pixels: int) -> np.ndarray:
    """Finds the pixel at which each of `cells` and the end of the last one begin, int64 (cells + 1,)."""
    edges = np.linspace(begin, end, cells + 1) * pixels
    return np.clip(np.round(edges), 0, pixels).astype(np.int64)
