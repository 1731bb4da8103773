"""How noisy an image is, from the image alone: a robust standard deviation of its finest diagonal detail."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SAMPLES = 2**16
"""Most detail coefficients of a channel that are looked at; more hardly change a median."""


def estimate_noise(image: Tensor | Image.Image) -> Tensor:
    """Estimates the standard deviation of white noise in each channel (Donoho and Johnstone 1994).

    The median absolute diagonal Haar coefficient, (a - b - c + d) / 2 of 2 x 2 pixels, over 0.6745. Edges and objects
    touch few of the coefficients, smooth regions none; fine texture all over an image counts as noise.

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
    return ((a - b - c + d) / 2).abs().flatten(1).quantile(0.5, dim=1) / 0.6745


def _sample_squares(image: Any) -> Any:
    """Chooses squares of 2 x 2 pixels, evenly spread over an array or tensor (C, H, W): (C, 4, rows, cols)."""
    rows, cols = image.shape[1] // 2 * 2, image.shape[2] // 2 * 2
    step = 2 * max(1, round((rows * cols / 4 / SAMPLES) ** 0.5))
    stack = torch.stack if isinstance(image, Tensor) else np.stack
    return stack([image[:, i:rows:step, j:cols:step] for i in (0, 1) for j in (0, 1)], 1)
