"""Antialiased bicubic resizing, as in CLIP's processor: with Pillow, or bit-identical with numba."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from PIL import Image

from qlip import kernels

BAND = 2**18
"""Pixels copied from Pillow at a time: each band reuses the memory of the one before; fresh memory takes longer."""

STRIP = 100
"""Height over width above which Pillow may resize columns first, which changes the result's bits."""


class BicubicResizer:
    """Resizes one RGB image, as often as needed."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image

    @cached_property
    def pixels(self) -> np.ndarray:
        """uint8 (H, W, 3)."""
        return copy_pixels(self.image)

    def resize(self, width: int, height: int, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
        """Resizes the image, or its part in `box` (left, top, right, bottom): uint8 (height, width, 3)."""
        image = self.image
        if (width, height) == image.size and box is None:
            return self.pixels
        is_strip = image.height > STRIP * image.width
        if not is_strip and (loops := kernels.load_loops()):
            whole = (0, 0, image.width, image.height)
            left, top, right, bottom = map(float, box or whole)
            return loops.resize_image(self.pixels, (left, top, right, bottom), width, height)
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


def copy_pixels(image: Image.Image) -> np.ndarray:
    """Copies an RGB image's pixels, uint8 (H, W, 3); a large one several times as fast as `numpy.asarray`."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    step = max(1, BAND // image.width)
    for top in range(0, image.height, step):
        bottom = min(image.height, top + step)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels
