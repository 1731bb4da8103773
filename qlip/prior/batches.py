"""Training batches from a folder of images, at random sizes; each depends on (seed, epoch, number) alone.

A run can therefore start at any step, and any number of processes sees the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from qlip.config import check_choice, check_count
from qlip.image_processing import QLIPImageProcessor
from qlip.images.pictures import crop_square, read_picture
from qlip.prior.config import AlphaPer, Shape, Sizes


class Batch(NamedTuple):
    """Images twice: at the size that the tower was trained on, and larger."""

    references: Tensor
    """float32 (B, 3, S, S): each image resized to the native square."""

    images: list[Tensor]
    """float32 (3, H, W) each: the same images larger, in their own aspect ratio."""

    alphas: list[float]
    """Split threshold of each."""

    seeds: list[int]
    """Seed of each image's random splits."""

    def to(self, device: torch.device) -> Batch:
        """Copies the batch to a device."""
        return Batch(self.references.to(device), [image.to(device) for image in self.images], self.alphas, self.seeds)


class PictureBatches(Dataset[Batch]):
    """Batch number i of an endless run; each epoch, i // per_epoch, has its own order.

    A batch is always full: the last of an epoch is filled up with the epoch's first images, and an image that can't be
    read is replaced by the next one.

    Args:
        paths: the image files.
        processor: its patch size, native size, normalisation and bounds on the grid are used.
        batch: images in a batch, over all processes; a multiple of their number.
        largest_size: pixels, see `sizes`.
        alpha: lowest and highest split threshold to draw from.
        alpha_per: draw one threshold for a batch, or one for each image.
        sizes: "drawn": a batch's shorter side is drawn from whole cells between the native size and `largest_size`;
            "own": each image at its own size, shrunk if its longer side exceeds `largest_size`.
        shape: "native" uses the whole image, "cropped" its central square.
        seed: of the order, sizes, thresholds and random splits.
        share: (rank, number of processes); batches hold this process's images only.

    Raises:
        ValueError: no paths, a size below the native one, or a batch that the processes can't share evenly.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        processor: QLIPImageProcessor,
        *,
        batch: int,
        largest_size: int,
        alpha: tuple[float, float],
        alpha_per: AlphaPer = "batch",
        sizes: Sizes = "drawn",
        shape: Shape = "native",
        seed: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        check_choice("shape", shape, Shape)
        check_choice("alpha_per", alpha_per, AlphaPer)
        check_choice("sizes", sizes, Sizes)
        check_count("batch", batch)
        native_size = processor.crop_size["height"]
        if not paths:
            raise ValueError("there are no images to make batches of")
        if largest_size < native_size:
            raise ValueError(f"largest_size is {largest_size}; it must be at least the native size {native_size}")
        if batch % share[1]:
            raise ValueError(f"batch is {batch}; {share[1]} processes share it, so it must be a multiple of {share[1]}")
        self.paths, self.processor, self.batch = list(paths), processor, batch
        self.largest_size, self.largest_cells = largest_size, largest_size // processor.patch_size
        self.alpha, self.alpha_per, self.sizes = alpha, alpha_per, sizes
        self.shape, self.seed, self.share = shape, seed, share
        self.unreadable: set[Path] = set()

    @property
    def per_epoch(self) -> int:
        """Batches that hold every image once."""
        return -(-len(self.paths) // self.batch)

    def __getitem__(self, step: int) -> Batch:
        epoch, number = divmod(step, self.per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.paths))
        draws = np.random.default_rng([self.seed, epoch, number])
        cells = int(draws.integers(self.processor.native_grid, self.largest_cells, endpoint=True))
        drawn = draws.uniform(*self.alpha, size=self.batch if self.alpha_per == "picture" else 1)
        alphas = np.broadcast_to(drawn, self.batch).tolist()
        seeds = draws.integers(2**63, size=self.batch).tolist()
        rank, processes = self.share
        first = number * self.batch
        views = [self._view(order, place) for place in range(first + rank, first + self.batch, processes)]
        native_size = self.processor.crop_size["height"]
        squares = [view.resize((native_size, native_size), Image.Resampling.BICUBIC) for view in views]
        references = torch.stack([self._prepare(square, None) for square in squares])
        sides = [cells * self.processor.patch_size if self.sizes == "drawn" else self._own_side(view) for view in views]
        images = [self._prepare(view, side) for view, side in zip(views, sides, strict=True)]
        return Batch(references, images, alphas[rank::processes], seeds[rank::processes])

    def _own_side(self, view: Image.Image) -> int | None:
        """Computes the shorter side, in pixels, of an image whose longer side is too long; None keeps the size."""
        short, long = sorted(view.size)
        return None if long <= self.largest_size else max(1, short * self.largest_size // long)

    def _view(self, order: np.ndarray, place: int) -> Image.Image:
        """Reads the image at a place in the order, or the next that can be read."""
        for offset in range(len(order)):
            path = self.paths[order[(place + offset) % len(order)]]
            if path in self.unreadable:
                continue
            picture = read_picture(path)
            if picture is not None:
                return crop_square(picture) if self.shape == "cropped" else picture
            self.unreadable.add(path)
        raise ValueError(f"none of the {len(order)} images can be read; the first is {self.paths[0]}")

    def _prepare(self, view: Image.Image, size: int | None) -> Tensor:
        """Normalises an image: float32 (3, H, W), its shorter side near `size` pixels; None keeps the size."""
        return self.processor.cutter.normalise(view, replace(self.processor.qlip, image_size=size))
