"""How noisy an image is, from the image alone: a robust standard deviation of its finest diagonal detail."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SAMPLES = 2**16
"""Most detail coefficients of a channel that are looked at; more hardly change a median."""

REGIONS, LEAST_SAMPLES = 8, 400
"""Most regions along a side; fewest coefficients of a region."""

QUIET_SHARE = 0.25
"""Share of the regions that may be quieter than what counts as the image's noise, such as saturated ones."""


def estimate_noise(image: Tensor | Image.Image) -> Tensor:
    """Estimates the standard deviation of white noise in each channel (Donoho and Johnstone 1994).

    The median absolute diagonal Haar coefficient, (a - b - c + d) / 2 of 2 x 2 pixels, over 0.6745, in each of up to
    8 x 8 regions, and of these the lower quartile: noise is everywhere, while grass and gravel are in a part of an
    image. Texture in more than three quarters of it counts as noise.

    Args:
        image: float (C, H, W), or an RGB image, whose values count from 0 to 1.

    Returns:
        float32 (C,), in the image's units; zeros for an image of a single row or column.
    """
    if isinstance(image, Image.Image):
        pixels = _sample_squares(np.asarray(image).transpose(2, 0, 1))
        squares = torch.from_numpy(pixels.astype(np.float32)) / 255
    else:
        squares = _sample_squares(image).float()
    if not squares.numel():
        return torch.zeros(len(squares))
    a, b, c, d = squares.unbind(1)
    medians = _in_regions(((a - b - c + d) / 2).abs()).quantile(0.5, dim=2)
    return medians.quantile(QUIET_SHARE, dim=1) / 0.6745


def _in_regions(values: Tensor) -> Tensor:
    """Splits values (C, rows, cols) into equal regions, without what is left over: (C, regions, values of each)."""
    rows, cols = values.shape[1:]
    side = min(REGIONS, max(1, int((rows * cols / LEAST_SAMPLES) ** 0.5)))
    down, across = min(side, rows), min(side, cols)
    whole = values[:, : rows // down * down, : cols // across * across]
    split = whole.unflatten(2, (across, -1)).unflatten(1, (down, -1))  # (C, down, rows, across, cols)
    return split.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)


def _sample_squares(image: Any) -> Any:
    """Chooses squares of 2 x 2 pixels, evenly spread over an array or tensor (C, H, W): (C, 4, rows, cols)."""
    rows, cols = image.shape[1] // 2 * 2, image.shape[2] // 2 * 2
    step = 2 * max(1, round((rows * cols / 4 / SAMPLES) ** 0.5))
    stack = torch.stack if isinstance(image, Tensor) else np.stack
    return stack([image[:, i:rows:step, j:cols:step] for i in (0, 1) for j in (0, 1)], 1)
