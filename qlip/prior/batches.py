"""A folder of pictures -> batches at random sizes, each a function of (seed, epoch, number) alone.

A run can therefore start at any step, and any number of processes sees the same batches. Knows nothing of towers.
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
from qlip.pictures import crop_square, read_picture
from qlip.prior.config import AlphaPer, Shape, Sizes


class Batch(NamedTuple):
    """Pictures twice: as a tower was trained to see them, and larger."""

    references: Tensor
    """float32 (B, 3, S, S): the whole view squeezed to the native size."""

    images: list[Tensor]
    """float32 (3, H, W) each: the same views larger, in their own aspect ratio."""

    alphas: list[float]
    """Split threshold of each."""

    seeds: list[int]
    """Of the random splits of each, where the splits are random."""

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(self.references.to(device), [image.to(device) for image in self.images], self.alphas, self.seeds)


class PictureBatches(Dataset[Batch]):
    """Batch number i of an endless run: epoch i // per_epoch, in an order of its own.

    A batch is always full: the last of an epoch goes on with the epoch's first pictures, and in the place of a picture
    that cannot be read comes the next one.

    Args:
        paths: the pictures.
        processor: gives patch size, native size, normalisation and bounds on the grid.
        batch: pictures in a batch, over all processes; a multiple of their number.
        largest_size: pixels, see `sizes`.
        alpha: lowest and highest split threshold to draw from.
        alpha_per: draw one threshold a batch, or one for each picture.
        sizes: "drawn": a batch's shorter side is drawn from whole cells between the native size and `largest_size`;
            "own": each picture at its own size, shrunk where its longer side exceeds `largest_size`.
        shape: "native" shows the whole picture, "cropped" its central square.
        seed: of order, sizes, thresholds and random splits.
        share: (rank, number of processes); batches hold this process's pictures only.

    Raises:
        ValueError: no paths, a size below the native one, or a batch that cannot be shared out.
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
            raise ValueError("there are no pictures to make batches of")
        if largest_size < native_size:
            raise ValueError(f"largest_size is {largest_size}; it must be at least the native size {native_size}")
        if batch % share[1]:
            raise ValueError(f"batch is {batch}; {share[1]} processes share it, so it must be a multiple of that")
        self.paths, self.processor, self.batch = list(paths), processor, batch
        self.largest_size, self.largest_cells = largest_size, largest_size // processor.patch_size
        self.alpha, self.alpha_per, self.sizes = alpha, alpha_per, sizes
        self.shape, self.seed, self.share = shape, seed, share
        self.unreadable: set[Path] = set()

    @property
    def per_epoch(self) -> int:
        """Batches in which every picture comes up."""
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
        """Shorter side, in pixels, of a picture whose longer one is too long; None keeps the size."""
        short, long = sorted(view.size)
        return None if long <= self.largest_size else max(1, short * self.largest_size // long)

    def _view(self, order: np.ndarray, place: int) -> Image.Image:
        """The picture at a place in the order, or the next that can be read."""
        for offset in range(len(order)):
            path = self.paths[order[(place + offset) % len(order)]]
            if path in self.unreadable:
                continue
            picture = read_picture(path)
            if picture is not None:
                return crop_square(picture) if self.shape == "cropped" else picture
            self.unreadable.add(path)
        raise ValueError(f"none of the {len(order)} pictures can be read; the first is {self.paths[0]}")

    def _prepare(self, view: Image.Image, size: int | None) -> Tensor:
        """float32 (3, H, W), normalised, with its shorter side near `size` pixels; None keeps the size."""
        return self.processor.cutter.normalise(view, replace(self.processor.qlip, image_size=size))
