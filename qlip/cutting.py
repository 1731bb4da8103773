"""Cuts images: RGB -> normalised pixels on a grid of whole cells -> the patches of the quadtree's leaves.

Needs torch and Pillow only, so that worker processes start fast; `qlip.image_processing` wraps it for transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qlip import kernels
from qlip.config import QLIPConfig, check_count
from qlip.images.blocks import resize_blocks
from qlip.images.resizing import BicubicResizer
from qlip.images.rgb import to_rgb
from qlip.patches import CutImage, check_grid, cut_cells, downsize, extract_native, extract_patches
from qlip.quadtree import Leaves, partition_as
from qlip.roots import fewest_leaves
from qlip.scores.criteria import WINDOWED
from qlip.scores.noise import estimate_noise

OPENAI_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

BAND = 2**17
"""Pixels normalised per step, so that they stay in the CPU's cache; numpy does it on the calling thread."""
SHRINK_STEP = 0.98
"""Factor on an image's sides until its cells and its coarsest tree fit the bounds."""


class FindLeaves(Protocol):
    """Finds the leaves of one image."""

    def __call__(self, settings: QLIPConfig, bounded: bool = True) -> tuple[Tensor, Leaves]:
        """Finds the image's pixels, resized and normalised, and its leaves; see `partition_as` for `bounded`."""


class CutOne(Protocol):
    """Cuts one image."""

    def __call__(self, settings: QLIPConfig, leaves: Leaves | None = None, bounded: bool = True) -> CutImage:
        """Cuts it under the settings, into `leaves` if they are given; see `partition_as` for `bounded`."""


def read_channels(name: str, values: Any, above: float = -math.inf) -> tuple[float, ...]:
    """Reads three finite numbers, one per channel, each greater than `above`; raises TypeError or ValueError."""
    bound = "" if above == -math.inf else f" above {above:g}"
    try:
        own = () if isinstance(values, str) else tuple(float(value) for value in values)
    except (TypeError, ValueError):
        own = ()
    if not own:
        raise TypeError(f"{name} is {values!r}; it must be three numbers{bound}, one for each of R, G and B")
    if len(own) != 3 or not all(math.isfinite(value) and value > above for value in own):
        raise ValueError(f"{name} is {own}; it must be three finite numbers{bound}, one for each of R, G and B")
    return own


@dataclass(frozen=True)
class ImageCutter:
    """Prepares images for one tower, under the settings of each call."""

    patch_size: int = 14
    """P: pixels per side of a cell."""

    native_size: int = 336
    """Side, in pixels, of the square images that the tower was trained on, rounded down to whole cells."""

    mean: tuple[float, ...] = OPENAI_CLIP_MEAN
    """Mean of each channel, of pixels in [0, 1]."""

    std: tuple[float, ...] = OPENAI_CLIP_STD
    """Standard deviation of each channel."""

    def __post_init__(self) -> None:
        check_count("patch_size", self.patch_size, least=2)
        check_count("native_size", self.native_size)
        object.__setattr__(self, "mean", read_channels("mean", self.mean))
        object.__setattr__(self, "std", read_channels("std", self.std, above=0))
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

        With geometry "grid" the nearest whole cells at the wanted size. With "native" the longer side becomes the
        native grid's times the smallest power of two that does not shrink it, and the shorter side the nearest number
        of native cells. Smaller in either where that exceeds `max_cells`, or where even the coarsest tree would exceed
        `max_tokens`.
        """
        scale = 1.0 if settings.image_size is None else settings.image_size / min(height, width)
        if settings.geometry == "native":
            return self._native_grid_of(height * scale, width * scale, settings)
        shrink = math.sqrt(settings.max_cells / (height * width)) * self.patch_size / scale
        if shrink >= 1:
            shrink = SHRINK_STEP
        while True:
            rows, cols = (max(1, round(side * scale / self.patch_size)) for side in (height, width))
            if rows * cols <= settings.max_cells and self._is_affordable((rows, cols), settings):
                return rows, cols
            scale *= shrink
            shrink = SHRINK_STEP

    def _native_grid_of(self, height: float, width: float, settings: QLIPConfig) -> tuple[int, int]:
        """Chooses the grid of native cells, each a square of a power of two; see `choose_grid`."""
        longest = max(height, width)
        # `image_size` scales by a rounded quotient, which must not cost a level.
        level = max(0, math.ceil(math.log2(longest / self.native_size) - 1e-9))
        sizes = [(self.native_grid, 2**k) for k in range(level, -1, -1)]
        sizes += [(side, 1) for side in range(self.native_grid - 1, 1, -1)]  # for budgets below CLIP's view
        for side, cell in sizes:
            rows, cols = (max(1, round(length / longest * side)) * cell for length in (height, width))
            if rows * cols <= settings.max_cells and self._is_affordable((rows, cols), settings):
                return rows, cols
        return 1, 1  # always allowed

    def make_fit(self, settings: QLIPConfig) -> Callable[[int, int], tuple[int, int]]:
        """Builds the function from an image's (width, height) to the (width, height) that it is resized to."""
        return partial(self._fitted_size, settings)

    def normalise(self, image: Image.Image, settings: QLIPConfig) -> Tensor:
        """Resizes an image of any mode to whole cells: float32 (3, H, W), normalised."""
        image = to_rgb(image)  # no copy where the image is plain RGB already
        return self._resize(BicubicResizer(image), self._fitted_size(settings, *image.size))

    def _resize(self, original: BicubicResizer, size: tuple[int, int]) -> Tensor:
        """Resizes an RGB image to (width, height) and normalises it."""
        return torch.from_numpy(self._normalise(original.resize(*size)))

    def to_tensor(self, image: Image.Image) -> Tensor:
        """Normalises an RGB image as it is: float32 (3, H, W)."""
        return torch.from_numpy(self._normalise(np.asarray(image)))

    def _normalise(self, levels: np.ndarray) -> np.ndarray:
        """Normalises levels from 0 to 255: uint8 (H, W, 3) -> float32 (3, H, W)."""
        height, width, channels = levels.shape
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        pixels = np.empty((channels, height, width), np.float32)
        step = max(1, BAND // (channels * width))
        for top in range(0, height, step):
            band = pixels[:, top : top + step]
            band[...] = levels[top : top + step].transpose(2, 0, 1)
            band /= 255
            band -= mean
            band /= std
        return pixels

    def partition(self, pixels: Tensor, settings: QLIPConfig) -> Leaves:
        """Computes the leaves of a normalised image (3, H, W): those that a tower finds under these settings."""
        return partition_as(settings, pixels, self.patch_size, self.native_grid)

    def find_leaves(self, image: Image.Image, settings: QLIPConfig) -> Leaves:
        """Computes the leaves of an image of any mode: those that `prepare` cuts out."""
        return self.make_finder(image)(settings)[1]

    def make_finder(self, image: Image.Image) -> FindLeaves:
        """Builds the function that finds one image's normalised pixels and leaves under given settings.

        Work that several settings share is done once: the pixels, and the noise of the image that they come from.
        """
        original = BicubicResizer(to_rgb(image))
        return self._make_finder(original, cache(partial(self._resize, original)))

    def _make_finder(self, original: BicubicResizer, pixels_of: Callable[[tuple[int, int]], Tensor]) -> FindLeaves:
        image = original.image
        # Compiled loops also resize from these pixels; without numba, Pillow copies only the sampled ones.
        noise_of = cache(lambda: estimate_noise(original.pixels if kernels.load_loops() else image))

        def find(settings: QLIPConfig, bounded: bool = True) -> tuple[Tensor, Leaves]:
            pixels = pixels_of(self._fitted_size(settings, *image.size))
            noise: Tensor | None = None
            if settings.noise_floor and settings.criterion in WINDOWED:
                scale = (pixels.shape[1] * pixels.shape[2] / (image.width * image.height)) ** 0.5
                # Enlarged noise is smooth, but averages out over as many original pixels as before.
                noise = scale * noise_of() / torch.tensor(self.std, dtype=torch.float32, device="cpu")
            return pixels, partition_as(settings, pixels, self.patch_size, self.native_grid, noise, bounded)

        return find

    def prepare(self, image: Image.Image, settings: QLIPConfig) -> CutImage:
        """Resizes an image of any mode and cuts out its leaves: all that a tower needs under these settings."""
        return self.make_preparer(image)(settings)

    def make_preparer(self, image: Image.Image) -> CutOne:
        """Builds a `prepare` bound to one image, which can also cut given leaves; see `make_finder`."""
        image = to_rgb(image)
        original = BicubicResizer(image)
        pixels_of = cache(partial(self._resize, original))
        find = self._make_finder(original, pixels_of)

        def prepare(settings: QLIPConfig, leaves: Leaves | None = None, bounded: bool = True) -> CutImage:
            if leaves is None:
                pixels, leaves = find(settings, bounded)
            else:
                pixels = pixels_of(self._fitted_size(settings, *image.size))
                check_grid(pixels, leaves, self.patch_size)
            if settings.geometry == "native":
                patches = extract_native(partial(self._cut_level, original, pixels), pixels, leaves, self.patch_size)
            else:
                patches = extract_patches(pixels, leaves, self.patch_size)
            return CutImage(leaves, patches, self._thumbnail(pixels, settings))

        return prepare

    def cut(self, pixels: Tensor, settings: QLIPConfig, leaves: Leaves | None = None, bounded: bool = True) -> CutImage:
        """Cuts out the leaves of a normalised image (3, H, W), or `leaves` if they are given.

        With geometry "native", `prepare` is closer to CLIP: it resizes the original image once for each level.
        """
        if leaves is None:
            leaves = partition_as(settings, pixels, self.patch_size, self.native_grid, bounded=bounded)
        patches = extract_patches(pixels, leaves, self.patch_size, settings.geometry)
        return CutImage(leaves, patches, self._thumbnail(pixels, settings))

    def _cut_level(self, original: BicubicResizer, pixels: Tensor, size: int, places: Tensor) -> Tensor:
        """Cuts blocks of `size` cells from the image resized so that each is one cell; see `patches_of_levels`."""
        side = self.patch_size
        if size == 1:
            return cut_cells(pixels, places, side)
        grid = pixels.shape[1] // side, pixels.shape[2] // side
        levels = resize_blocks(original, grid, size, places.numpy(), side)
        patches = self._normalise(levels.reshape(-1, side, 3)).reshape(3, -1, side, side)
        return torch.from_numpy(patches.swapaxes(0, 1))

    def _thumbnail(self, pixels: Tensor, settings: QLIPConfig) -> Tensor | None:
        return downsize(pixels, self.native_size) if settings.thumbnail else None

    def _fitted_size(self, settings: QLIPConfig, width: int, height: int) -> tuple[int, int]:
        rows, cols = self.choose_grid(height, width, settings)
        return cols * self.patch_size, rows * self.patch_size

    def _is_affordable(self, grid: tuple[int, int], settings: QLIPConfig) -> bool:
        if settings.max_tokens is None:
            return True
        return fewest_leaves(settings, grid, self.native_grid) <= settings.max_tokens
