"""Anyres (LLaVA-1.6, LLaVA-NeXT): where an image's tiles lie, how their features are joined, how many tokens result.

An image is encoded as its *base*, the whole of it squeezed to one tile, and as the tiles of the resolution that suits
it best, to which it is padded. `mm_patch_merge_type` says how their features become one sequence:

- "flat": those of base and tiles follow each other as they are.
- "spatial": the base's come first; those of the tiles are arranged as one raster.
- "spatial_unpad": also, the raster loses its padding, and the model's `image_newline` closes each of its rows.
- "spatial_maxpool2x2": of each 2 x 2 cells of the raster the maximum is kept.

Pure functions. Sources: LLaVA's `prepare_inputs_labels_for_multimodal`; "anyres_max_N" and "maxpool2x2" as in
LLaVA-NeXT's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava.image_geometry import (
    WidthHeight,
    find_padding,
    is_anyres,
    most_tiles,
    read_pinpoints,
    select_best_resolution,
)
from qlip.tiles import Raster

SHRINKS = 1.1
"""Ratio of a raster's side to that of N tiles above which "anyres_max_N" shrinks it."""

POOLED, POOL = "maxpool2x2", 2


@dataclass(frozen=True)
class TileLayout:
    """How one image's tiles become a sequence of tokens."""

    rows: int
    """Rows of tiles; 0 where the image is its base alone."""
    cols: int
    """Columns of tiles."""
    original: WidthHeight | None
    """(width, height) of the original image in pixels; None where it is its base alone."""
    unpad: bool
    """Whether padding is cut off, and `image_newline` closes each row, or the base where it is alone."""
    most: int | None = None
    """The raster is shrunk to about as many cells as this many tiles have; None never shrinks it."""
    pool: int = 1
    """Cells per side of the squares of which the raster keeps the maximum; a last cell that fills none is left out."""

    def find_window(self, n: int) -> tuple[int, int, int, int]:
        """Finds what is kept of the raster of tiles of n x n cells: (top, left, rows, cols)."""
        rows, cols = self.rows * n, self.cols * n
        left, top = (0, 0) if self.original is None or not self.unpad else find_padding((cols, rows), self.original)
        return top, left, rows - 2 * top, cols - 2 * left

    def find_shape(self, n: int) -> tuple[int, int]:
        """Finds (rows, cols) of the raster in tokens, newlines not counted."""
        _, _, rows, cols = self.find_window(n)
        times = 0.0 if self.most is None else math.sqrt(rows * cols / (self.most * n**2))
        return (int(rows // times), int(cols // times)) if times > SHRINKS else (rows // self.pool, cols // self.pool)

    def count(self, n: int) -> int:
        """Counts the tokens of an image whose tiles have n x n cells."""
        if not self.rows:
            return n * n + self.unpad
        rows, cols = self.find_shape(n)
        return n * n + rows * (cols + self.unpad)

    def raster(self, n: int) -> Raster:
        """The tokens that the model was trained to see of the image, for leaves to take their places.

        A strip so thin that LLaVA keeps no row of it counts as one row.
        """
        rows, cols = self.find_shape(n)
        return Raster(n * n, max(rows, 1), max(cols, 1))

    def merge(self, features: Tensor, newline: Tensor | None) -> Tensor:
        """Joins the features of base and tiles.

        Args:
            features: (T * n * n, D), the base's first; T is 1 + tiles.
            newline: (D,), the model's `image_newline`; read where the layout has newlines.

        Returns:
            (`count(n)`, D).

        Raises:
            ValueError: the layout has newlines, and the model none.
        """
        if self.unpad and newline is None:
            raise ValueError("the model has no image_newline; mm_patch_merge_type 'spatial_unpad' needs one")
        end = newline.to(features) if self.unpad and newline is not None else features.new_zeros(0)
        cells, width = len(features) // (1 + self.rows * self.cols), features.shape[-1]
        base, tiles = features.split([cells, len(features) - cells])
        if not self.rows:
            return torch.cat([base, end[None]]) if self.unpad else base
        n = math.isqrt(cells)
        raster = tiles.view(self.rows, self.cols, n, n, width).transpose(1, 2)
        raster = raster.reshape(self.rows * n, self.cols * n, width)
        top, left, rows, cols = self.find_window(n)
        raster = raster[top : top + rows, left : left + cols]
        if self.pool > 1:
            raster = F.max_pool2d(raster.permute(2, 0, 1), self.pool).permute(1, 2, 0)
        elif (shape := self.find_shape(n)) != (rows, cols):
            raster = F.interpolate(raster.permute(2, 0, 1)[None], list(shape), mode="bilinear")[0].permute(1, 2, 0)
        if self.unpad:
            raster = torch.cat([raster, end.expand(len(raster), 1, width)], dim=1)
        return torch.cat([base, raster.flatten(0, 1)])


def joins_tiles(config: Any) -> bool:
    """Whether a configuration's `mm_patch_merge_type` arranges tiles to a raster: not "flat", and not absent."""
    return (getattr(config, "mm_patch_merge_type", None) or "flat") != "flat"


def has_newline(config: Any) -> bool:
    """Whether a model of this configuration has an `image_newline`."""
    return "unpad" in (getattr(config, "mm_patch_merge_type", None) or "")


def make_newline(config: Any, like: Tensor | None = None) -> nn.Parameter:
    """Draws a new `image_newline`, (D,), of deviation 1 / sqrt(D) as LLaVA does; with dtype and device of `like`."""
    newline = torch.randn(config.hidden_size) / math.sqrt(config.hidden_size)
    return nn.Parameter(newline if like is None else newline.to(like))


def plan_tiles(config: Any, size: Sequence[int] | None, tiles: int, side: int) -> TileLayout | None:
    """Plans how one image's tiles are joined; None where they follow each other as they are.

    Args:
        config: has, or lacks, `image_aspect_ratio`, `image_grid_pinpoints` and `mm_patch_merge_type`.
        size: (width, height) of the original image in pixels; not read for a single tile.
        tiles: how many there are, the base included.
        side: of a tile in pixels.

    Raises:
        ValueError: there are tiles, and no size or one with another number of them, or no anyres.
    """
    if not joins_tiles(config):
        return None
    merge = config.mm_patch_merge_type
    unpad = has_newline(config)
    if tiles == 1:
        return TileLayout(0, 0, None, unpad)
    ratio: Any = getattr(config, "image_aspect_ratio", None)
    if not is_anyres(ratio):
        raise ValueError(
            f"an image has {tiles} tiles, which mm_patch_merge_type {merge!r} joins; image_aspect_ratio is {ratio!r},"
            " it must be 'anyres' or 'anyres_max_N'"
        )
    if size is None:
        raise ValueError(
            f"an image has {tiles} tiles, and its size is not known: give image_sizes, (width, height) of each image"
        )
    return lay_out(config, size, side, tiles)


def lay_out(config: Any, size: Sequence[int], side: int, tiles: int | None = None) -> TileLayout:
    """Chooses an image's tiles of `side` pixels by its size (width, height).

    Raises:
        ValueError: a side is below 1; or `tiles`, the base included, are given, and there are not as many.
    """
    original = int(size[0]), int(size[1])
    if min(original) < 1:
        raise ValueError(f"image_sizes holds {original}; an image has at least 1 x 1 pixels")
    width, height = select_best_resolution(original, read_pinpoints(config.image_grid_pinpoints, side))
    rows, cols = height // side, width // side
    if tiles is not None and tiles != 1 + rows * cols:
        raise ValueError(
            f"an image of {original[0]} x {original[1]} pixels (image_sizes) has 1 + {rows * cols} tiles of {side}"
            f" pixels, but {tiles} were given"
        )
    unpad = has_newline(config)
    most = most_tiles(config.image_aspect_ratio) if unpad else None
    return TileLayout(rows, cols, original, unpad, most, POOL if config.mm_patch_merge_type.endswith(POOLED) else 1)
