"""An RGB image -> normalised pixels on a grid of whole cells -> the leaves of its quadtree, cut out.

Needs torch and Pillow only, so that worker processes start fast; `qlip.image_processing` wraps it for transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qlip.config import QLIPConfig, check_count
from qlip.patches import CutImage, downsize, extract_patches
from qlip.quadtree import Leaves, allowed_leaf, count_roots, partition_as
from qlip.rgb import to_rgb

OPENAI_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ImageCutter:
    """Prepares images for one tower, under the settings of each call."""

    patch_size: int = 14
    """P: pixels per side of a cell."""

    native_size: int = 336
    """Side, in pixels, of the square images that the tower was trained on, rounded down to whole cells."""

    mean: tuple[float, ...] = OPENAI_CLIP_MEAN
    """Per channel, of pixels in [0, 1]."""

    std: tuple[float, ...] = OPENAI_CLIP_STD
    """Per channel."""

    def __post_init__(self) -> None:
        check_count("patch_size", self.patch_size)
        check_count("native_size", self.native_size)
        if self.native_size < self.patch_size:
            raise ValueError(f"native_size is {self.native_size}; it must be at least patch_size {self.patch_size}")
        # A ViT drops the pixels beyond its last whole patch.
        object.__setattr__(self, "native_size", self.native_size - self.native_size % self.patch_size)

    @property
    def native_grid(self) -> int:
        """n: cells per side of the native image."""
        return self.native_size // self.patch_size

    def choose_grid(self, height: int, width: int, settings: QLIPConfig) -> tuple[int, int]:
        """Chooses the (rows, cols) that an image of `height` x `width` pixels is resized to.

        The nearest whole cells at the wanted size, made smaller where they exceed `max_cells`, or where even the
        coarsest tree would exceed `max_tokens`.
        """
        scale = 1.0 if settings.image_size is None else settings.image_size / min(height, width)
        cells = height * width * (scale / self.patch_size) ** 2
        scale *= min(1.0, math.sqrt(settings.max_cells / cells))
        while True:
            rows, cols = (max(1, round(side * scale / self.patch_size)) for side in (height, width))
            if rows * cols <= settings.max_cells and self._is_affordable((rows, cols), settings):
                return rows, cols
            scale *= 0.98

    def fit(self, settings: QLIPConfig) -> Callable[[int, int], tuple[int, int]]:
        """Builds the function from an image's (width, height) to the (width, height) that it is resized to."""
        return partial(self._fitted_size, settings)

    def normalise(self, image: Image.Image, settings: QLIPConfig) -> Tensor:
        """Resizes an image of any mode to whole cells: float32 (3, H, W), normalised."""
        image = to_rgb(image)  # returns an image that `llava.images` decoded as it is
        size = self._fitted_size(settings, *image.size)
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float()
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return pixels.div_(255).sub_(mean).div_(std)  # in place: fresh memory costs more than the arithmetic

    def partition(self, pixels: Tensor, settings: QLIPConfig) -> Leaves:
        """Computes the leaves of a normalised image (3, H, W): those that a tower finds under these settings."""
        return partition_as(settings, pixels, self.patch_size, self.native_grid)

    def cut(self, pixels: Tensor, settings: QLIPConfig) -> CutImage:
        """Cuts out the leaves of a normalised image (3, H, W), all that a tower needs under these settings."""
        leaves = self.partition(pixels, settings)
        thumbnail = downsize(pixels, self.native_size) if settings.thumbnail else None
        return CutImage(leaves, extract_patches(pixels, leaves, self.patch_size), thumbnail)

    def _fitted_size(self, settings: QLIPConfig, width: int, height: int) -> tuple[int, int]:
        rows, cols = self.choose_grid(height, width, settings)
        return cols * self.patch_size, rows * self.patch_size

    def _is_affordable(self, grid: tuple[int, int], settings: QLIPConfig) -> bool:
        if settings.max_tokens is None:
            return True
        max_leaf = allowed_leaf(settings, grid, self.native_grid)
        return count_roots(grid, settings.layout, max_leaf) <= settings.max_tokens
