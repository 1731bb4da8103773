"""How noisy an image is, from the image alone: a robust standard deviation of its finest diagonal detail."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qlip import kernels
from qlip.scores.arrays import Array, as_array, as_tensor

SAMPLES = 2**16
"""Most detail coefficients sampled per channel; more barely change the median."""

REGIONS, LEAST_SAMPLES = 8, 400
"""Most regions along a side; fewest coefficients of a region."""

QUIET_SHARE = 0.25
"""Share of the regions that may be quieter than what counts as the image's noise, such as saturated ones."""


def estimate_noise(image: Tensor | Image.Image | np.ndarray) -> Tensor:
    """Estimates the standard deviation of white noise in each channel (Donoho and Johnstone 1994).

    The median absolute diagonal Haar coefficient, (a - b - c + d) / 2 of 2 x 2 pixels, over 0.6745, in each of up to
    8 x 8 regions, and of these the lower quartile: noise is everywhere, while grass and gravel are in a part of an
    image. Texture in more than three quarters of it counts as noise.

    Args:
        image: float (C, H, W); or an RGB image or its pixels, uint8 (H, W, 3), whose values count from 0 to 1. Compiled
            loops take pixels; what numpy needs of an image it reads without a copy of the rest.

    Returns:
        float32 (C,), in the image's units; zeros for an image of a single row or column.
    """
    unit = 1 if isinstance(image, Tensor) else 255
    if isinstance(image, np.ndarray) and min(image.shape[:2]) > 1 and (loops := kernels.load_loops()):
        step = _step(*image.shape[:2])
        rows, cols = (len(range(0, side - 1, step)) for side in image.shape[:2])
        medians: Array = loops.find_medians(np.ascontiguousarray(image), step, *_count_regions(rows, cols))
    else:
        detail = _find_detail(image)
        if 0 in detail.shape:
            return torch.zeros(len(detail), dtype=torch.float32, device="cpu")
        medians = _quantile(_in_regions(abs(detail)), 0.5)
    return as_tensor(_quantile(medians, QUIET_SHARE) / (2 * unit * 0.6745)).float()


def _find_detail(image: Tensor | Image.Image | np.ndarray) -> Array:
    """Computes a - b - c + d of squares of 2 x 2 pixels: (C, rows, cols)."""
    if isinstance(image, Tensor):
        a, b, c, d = _sample_squares(as_array(image.float()))
        return a - b - c + d
    if isinstance(image, Image.Image):
        a, b, c, d = (corner.transpose(2, 0, 1) for corner in _sample_image(image))
    else:
        a, b, c, d = _sample_squares(image.transpose(2, 0, 1))
    detail = np.subtract(a, b, dtype=np.int16)  # whole numbers, which sort several times as fast
    detail -= c
    detail += d
    return detail


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
    down, across = _count_regions(rows, cols)
    whole = values[:, : rows // down * down, : cols // across * across]
    split = whole.reshape(channels, down, rows // down, across, cols // across)
    return split.swapaxes(2, 3).reshape(channels, down * across, -1)


def _count_regions(rows: int, cols: int) -> tuple[int, int]:
    """Counts the rows and columns of regions that rows x cols squares are divided into."""
    side = min(REGIONS, max(1, int((rows * cols / LEAST_SAMPLES) ** 0.5)))
    return min(side, rows), min(side, cols)


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
    """Chooses the distance between squares of 2 x 2 pixels so that about SAMPLES of them are used."""
    return 2 * max(1, round(((height // 2) * (width // 2) / SAMPLES) ** 0.5))
