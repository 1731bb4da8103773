"""How noisy an image is, from the image alone: a robust standard deviation of its finest diagonal detail."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qlip.scores.arrays import Array, as_array, as_tensor

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
        a, b, c, d = (corner.transpose(2, 0, 1) for corner in _sample_image(image))
        detail, unit = np.subtract(a, b, dtype=np.int16), 255  # whole numbers, which sort several times as fast
        detail -= c
        detail += d
    else:
        a, b, c, d = _sample_squares(as_array(image.float()))
        detail, unit = a - b - c + d, 1
    if 0 in detail.shape:
        return torch.zeros(len(detail))
    medians = _quantile(_in_regions(abs(detail)), 0.5)
    return as_tensor(_quantile(medians, QUIET_SHARE) / (2 * unit * 0.6745)).float()


def _quantile(values: Array, share: float) -> Array:
    """Computes a quantile along the last dimension."""
    if isinstance(values, Tensor):
        return values.quantile(share, dim=-1)
    ordered, place = np.sort(values, axis=-1), share * (values.shape[-1] - 1)  # half the time of `quantile` alone
    low = int(place)
    return np.quantile(ordered[..., low : low + 2], place - low, axis=-1)


def _in_regions(values: Array) -> Array:
    """Splits values (C, rows, cols) into equal regions, without what is left over: (C, regions, values of each)."""
    channels, rows, cols = values.shape
    side = min(REGIONS, max(1, int((rows * cols / LEAST_SAMPLES) ** 0.5)))
    down, across = min(side, rows), min(side, cols)
    whole = values[:, : rows // down * down, : cols // across * across]
    split = whole.reshape(channels, down, rows // down, across, cols // across)
    return split.swapaxes(2, 3).reshape(channels, down * across, -1)


def _sample_squares(image: Array) -> list[Array]:
    """Chooses squares of 2 x 2 pixels, evenly spread over (C, H, W): their four corners, (C, rows, cols) each."""
    height, width = image.shape[1] // 2 * 2, image.shape[2] // 2 * 2
    step = _step(height, width)
    return [image[:, i:height:step, j:width:step] for i in (0, 1) for j in (0, 1)]


def _sample_image(image: Image.Image) -> list[np.ndarray]:
    """Chooses the same squares of an RGB image, uint8 (rows, cols, 3) each; no other pixel is copied out of Pillow."""
    height, width = image.height // 2 * 2, image.width // 2 * 2
    step = _step(height, width)
    size = len(range(0, width, step)), len(range(0, height, step))
    if 0 in size:
        return [np.empty((*size[::-1], 3), np.uint8)] * 4
    # Pixel (x, y) is read at the centre of its square: (x + 1/2) step + offset = x step + j + 1/2.
    offsets = [index + 0.5 - step / 2 for index in (0, 1)]
    return [
        np.asarray(image.transform(size, Image.Transform.AFFINE, (step, 0, across, 0, step, down)))
        for down in offsets
        for across in offsets
    ]


def _step(height: int, width: int) -> int:
    """Chooses the distance between squares of 2 x 2 pixels so that about SAMPLES of them are looked at."""
    return 2 * max(1, round((height * width / 4 / SAMPLES) ** 0.5))
