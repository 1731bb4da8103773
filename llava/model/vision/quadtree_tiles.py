"""QLIP in place of tiles, for models that were trained on them (anyres, LLaVA-1.6): images cut, tokens in order.

Needs no model. Light: worker processes import this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llava.image_geometry import fit_into, is_anyres, resize_and_pad_image
from llava.model.vision.anyres import TileLayout, has_newline, joins_tiles, lay_out
from qlip.config import QLIPConfig
from qlip.patches import CutImage
from qlip.tiles import TokenOrder, cut_tiles, merge_tiles, order_tokens, split_tiles

if TYPE_CHECKING:
    from PIL import Image

    from qlip.cutting import ImageCutter
    from qlip.quadtree import Leaves

Cuts = CutImage | tuple[CutImage, ...]
"""An image as a quadtree tower takes it: whole; or its base and its tiles."""


def has_tiles(config: Any) -> bool:
    """Whether a model was trained on tiles (anyres, LLaVA-1.6)."""
    return is_anyres(getattr(config, "image_aspect_ratio", None)) or joins_tiles(config)


def check_quadtree(config: Any, settings: QLIPConfig) -> None:
    """Checks that a quadtree can take the place of a model's tiles, if it was trained on them.

    Raises:
        ValueError: the settings ask for tiles, on which the model was not trained; or it joins them otherwise than to
            rows with newlines, or the question would decide on leaves.
    """
    if not has_tiles(config):
        if settings.tiling == "tiles":
            raise ValueError(
                "tiling is 'tiles', for models that were trained on tiles (LLaVA-1.6); this one's image_aspect_ratio is"
                f" {getattr(config, 'image_aspect_ratio', None)!r}; give tiling='image' (--tiling image)"
            )
        return
    if not takes_leaves(config):
        raise ValueError(
            "qlip takes the place of tiles only where image_aspect_ratio is 'anyres' or 'anyres_max_N' and"
            f" mm_patch_merge_type 'spatial_unpad'; here they are {config.image_aspect_ratio!r} and"
            f" {config.mm_patch_merge_type!r}; load the model with qlip=False (--no-qlip)"
        )
    if settings.budget != "score":
        raise ValueError(f"budget is {settings.budget!r}; allowed in models that were trained on tiles is 'score'")


def takes_leaves(config: Any) -> bool:
    """Whether leaves can take the places of a model's tiles: those of rows that newlines close."""
    return is_anyres(config.image_aspect_ratio) and has_newline(config)


def cut_for_tiles(image: Image.Image, cutter: ImageCutter, settings: QLIPConfig, layout: TileLayout, side: int) -> Cuts:
    """Cuts an RGB image for a model that was trained on tiles of `side` pixels."""
    if settings.tiling == "image":
        return cutter.prepare(image, settings)
    canvas = cutter.to_tensor(resize_and_pad_image(image, (layout.cols * side, layout.rows * side)))
    tiles = split_tiles(canvas, layout.rows, layout.cols)
    base = cutter.to_tensor(image.resize((side, side)))
    return cut_tile_pixels(torch.cat([base[None], tiles]), layout, settings, cutter.patch_size)


def cut_tile_pixels(pixels: Tensor, layout: TileLayout, settings: QLIPConfig, patch_size: int) -> Cuts:
    """Cuts the base and the tiles, float (1 + T, C, S, S), normalised, of an image."""
    side = pixels.shape[-1]
    if layout.original is None:
        raise ValueError("the image has no tiles")
    left, top, width, height = fit_into(layout.original, (layout.cols * side, layout.rows * side))
    shape = layout.rows, layout.cols
    return cut_tiles(pixels, shape, (top, left, height, width), settings, patch_size, side // patch_size)


def plan_leaves(
    config: Any, size: Sequence[int] | None, image: Cuts | Tensor, side: int, settings: QLIPConfig, cutter: ImageCutter
) -> TileLayout:
    """Plans the tiles whose places an image's leaves take.

    Args:
        config: of a model that `takes_leaves`.
        size: (width, height) of the original image in pixels.
        image: leaves, pixels (C, H, W), or those of base and tiles (1 + T, C, S, S), whose number is checked.
        side: of a tile in pixels.
        settings: how the image was resized.
        cutter: of the tower.

    Raises:
        ValueError: there is no size, or one of another shape or with another number of tiles.
    """
    if size is None:
        raise ValueError("the size of an image is not known: give image_sizes, (width, height) of each image")
    if isinstance(image, tuple) or (isinstance(image, Tensor) and image.ndim == 4):
        return lay_out(config, size, side, len(image))
    layout = lay_out(config, size, side)
    if isinstance(image, CutImage):
        rows, cols = image.leaves.grid
    else:
        rows, cols = (max(1, length // cutter.patch_size) for length in image.shape[-2:])
    width, height = int(size[0]), int(size[1])
    unit = max(1.0, max(rows, cols) / cutter.native_grid) if settings.geometry == "native" else 1.0
    if not fits_grid((height, width), (rows, cols), unit):
        swapped = fits_grid((width, height), (rows, cols), unit)
        raise ValueError(
            f"image_sizes holds ({width}, {height}), and the pixels of that image are {cols * cutter.patch_size} x"
            f" {rows * cutter.patch_size} (width x height), of another shape; "
            + (f"({height}, {width}) would fit: sizes are (width, height), and " if swapped else "give ")
            + "image.size of the image as process_images got it: upright, if it was turned upright before"
        )
    return layout


def fits_grid(size: tuple[int, int], grid: tuple[int, int], unit: float) -> bool:
    """Whether an image of `size` (height, width) may have been resized to `grid` (rows, cols) of cells.

    Both sides were scaled by one factor and rounded to `unit` cells, at least one unit; see `ImageCutter.choose_grid`.
    """
    lows = [(cells / unit - 0.5) / side if cells > unit else 0.0 for cells, side in zip(grid, size, strict=True)]
    highs = [(cells / unit + 0.5) / side for cells, side in zip(grid, size, strict=True)]
    return max(lows) <= min(highs) * (1 + 1e-9)


def plan_joining(
    image: Cuts | Tensor, layout: TileLayout, settings: QLIPConfig | None, n: int
) -> TileLayout | TokenOrder:
    """Plans how an image's tokens are joined: those of tiles as their layout says, those of leaves by `order_cuts`."""
    if settings is None or isinstance(image, Tensor):
        return layout
    return order_cuts(image, layout, settings, n)


def order_cuts(cuts: Cuts, layout: TileLayout, settings: QLIPConfig, n: int) -> TokenOrder:
    """Orders an image's tokens on the raster of its tiles of n x n cells; see `qlip.tiles.order_tokens`."""
    raster = layout.raster(n)
    if isinstance(cuts, CutImage):
        return order_tokens(settings, cuts.leaves, raster, n * n if settings.thumbnail else 0)
    leaves, which = merge_cuts(cuts, layout)
    return order_tokens(settings, leaves, raster, n * n, which)


def merge_cuts(cuts: Sequence[CutImage], layout: TileLayout) -> tuple[Leaves, Tensor]:
    """Joins the leaves of an image's tiles; see `qlip.tiles.merge_tiles`."""
    (n, _) = cuts[0].leaves.grid
    top, left, rows, cols = layout.find_window(n)  # nothing is left of the thinnest strips
    trees = [tile.leaves for tile in cuts[1:]]
    return merge_tiles(trees, (layout.rows, layout.cols), (top, left, max(rows, 1), max(cols, 1)))
