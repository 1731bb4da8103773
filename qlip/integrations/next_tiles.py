"""LLaVA-NeXT's tiles: which of them an image has, and how leaves take the places of their tokens (`qlip.tiles`).

One quadtree is over the whole image, or one is in each tile (`QLIPConfig.tiling`). transformers' own functions choose
the tiles and find their padding. Sizes are (height, width), as in transformers' LLaVA-NeXT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import get_patch_output_size
from transformers.image_utils import ChannelDimension
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from qlip.config import QLIPConfig
from qlip.image_processing import QLIPImageProcessor
from qlip.images.arrays import list_images, to_pillow
from qlip.images.rgb import to_rgb
from qlip.packing import AS_GIVEN, INTEGERS, PACKED_NAMES, unpack_leaves
from qlip.patches import CutImage
from qlip.quadtree import Leaves
from qlip.tiles import Box, Raster, TokenOrder, cut_tiles, merge_tiles, order_tokens
from qlip.untraced import native_cut

HeightWidth = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class NextLayout:
    """Where the tiles of one image lie."""

    shape: tuple[int, int]
    """(rows, columns) of tiles, the base not counted."""

    window: Box
    """The part of the joined tiles that is not padding, in cells; at least one cell."""


@dataclass(frozen=True)
class NextTiles:
    """How a model tiles images."""

    pinpoints: tuple[HeightWidth, ...]
    """`image_grid_pinpoints`: the resolutions that images are tiled at."""

    side: int
    """Side of a tile, in pixels."""

    native_grid: int
    """n: cells per side of a tile."""

    @classmethod
    def of(cls, config: Any, native_grid: int) -> NextTiles:
        """Reads a LlavaNextConfig."""
        pinpoints = tuple((int(height), int(width)) for height, width in config.image_grid_pinpoints)
        return cls(pinpoints, config.vision_config.image_size, native_grid)

    def order(self, settings: QLIPConfig, trees: Sequence[Leaves], image_sizes: Any) -> list[TokenOrder]:
        """Orders the tokens of packed images as the tokens of their tiles would be.

        Args:
            settings: of the model.
            trees: the leaves of each image; with tiling "tiles" on the joined tiles.
            image_sizes: int64 (B, 2), the originals' heights and widths in pixels.

        Raises:
            ValueError: sizes are missing, malformed or of other images than the leaves.
        """
        sizes = read_sizes(image_sizes, len(trees))
        return [self._order_one(settings, tree, size) for tree, size in zip(trees, sizes, strict=True)]

    def _order_one(self, settings: QLIPConfig, leaves: Leaves, size: HeightWidth) -> TokenOrder:
        layout, base = lay_out(self, size), self.native_grid**2
        raster = Raster(base, *layout.window[2:])
        if settings.tiling == "image":
            return order_tokens(settings, leaves, raster, base if settings.thumbnail else 0)
        rows, cols = (count * self.native_grid for count in layout.shape)
        if leaves.grid != (rows, cols):
            raise ValueError(
                f"an image of {size[0]} x {size[1]} pixels (height x width, image_sizes) has tiles of {rows} x {cols}"
                f" cells, its leaves (leaf_grids) {leaves.grid[0]} x {leaves.grid[1]}; give both {AS_GIVEN}"
            )
        tiles = [tree for tree, _ in split_leaves(leaves, self.native_grid)]
        kept, which = merge_tiles(tiles, layout.shape, layout.window)
        return order_tokens(settings, kept, raster, base, which)

    def cut(self, pixels: Tensor, size: HeightWidth, settings: QLIPConfig, patch_size: int) -> CutImage:
        """Cuts the base and the tiles of an image: leaves on the joined tiles, and the base as its thumbnail.

        Args:
            pixels: float (1 + T, C, S, S), normalised: the base, then the tiles in raster order.
            size: of the original.
            settings: see `qlip.tiles.partition_tiles`.
            patch_size: P.

        Raises:
            ValueError: the size asks for other tiles, or the budget is below the coarsest trees.
        """
        layout = lay_out(self, size)
        rows, cols = layout.shape
        if pixels.ndim != 4 or len(pixels) != 1 + rows * cols or pixels.shape[-1] != self.side:
            raise ValueError(
                f"the processor makes pixels of {tuple(pixels.shape)} of an image of {size[0]} x {size[1]} (height x"
                f" width), the model wants 1 + {rows * cols} tiles of {self.side} pixels; attach its own processor"
            )
        n, inside = self.native_grid, find_image(size, (rows * self.side, cols * self.side))
        _, *tiles = cut_tiles(pixels, layout.shape, inside, settings, patch_size, n)
        merged, _ = merge_tiles([tile.leaves for tile in tiles], layout.shape, (0, 0, rows * n, cols * n))
        order = (merged.boxes[:, 0] * cols * n + merged.boxes[:, 1]).argsort()
        patches = torch.cat([tile.patches for tile in tiles])[order]
        base = pixels[0, :, : n * patch_size, : n * patch_size]
        return CutImage(Leaves(merged.boxes[order], merged.grid), patches, base)


@lru_cache(maxsize=4096)
def lay_out(tiles: NextTiles, size: HeightWidth) -> NextLayout:
    """Chooses an image's tiles, and finds what LLaVA-NeXT keeps of them."""
    n = tiles.native_grid
    shape = get_anyres_image_grid_shape(size, [list(pair) for pair in tiles.pinpoints], tiles.side)
    rows, cols = (count * n for count in shape)
    kept = unpad_image(torch.empty(0, rows, cols, device="cpu"), size).shape[1:]
    height, width = (max(1, side) for side in kept)  # LLaVA-NeXT keeps nothing of a strip that is thinner than a cell
    return NextLayout(shape, ((rows - height) // 2, (cols - width) // 2, height, width))


def find_image(size: HeightWidth, frame: HeightWidth) -> Box:
    """Finds where an image fitted into `frame` lies, in pixels."""
    like = np.broadcast_to(np.zeros((), dtype=np.uint8), (1, *size))
    height, width = get_patch_output_size(like, frame, ChannelDimension.FIRST)
    return (frame[0] - height) // 2, (frame[1] - width) // 2, height, width


def split_leaves(leaves: Leaves, n: int) -> list[tuple[Leaves, Tensor]]:
    """Splits leaves on joined tiles of n x n cells: those of each tile on its own grid, and their numbers, int64.

    Raises:
        ValueError: a leaf is in two tiles.
    """
    row, col, size = leaves.boxes.unbind(1)
    cols = leaves.grid[1] // n
    if (crossing := (row % n + size > n) | (col % n + size > n)).any():
        box = leaves.boxes[crossing.nonzero()[0, 0]].tolist()
        raise ValueError(
            f"a leaf (leaf_boxes) of row, col, size {box} is in two tiles of {n} x {n} cells; with tiling 'tiles' give"
            f" images {AS_GIVEN}"
        )
    tile = row // n * cols + col // n
    parts = []
    for number in range(leaves.grid[0] // n * cols):
        own = (tile == number).nonzero()[:, 0]
        corner = torch.tensor([number // cols * n, number % cols * n, 0], device="cpu")
        parts.append((Leaves(leaves.boxes[own] - corner, (n, n)), own))
    return parts


def split_cut(image: CutImage, n: int, patch_size: int) -> list[CutImage]:
    """Splits an image that `NextTiles.cut` made: the base on the native grid, then each tile."""
    if image.thumbnail is None:
        raise ValueError("an image has no base")
    tiles = [CutImage(tree, image.patches[own.to(image.patches.device)]) for tree, own in split_leaves(image.leaves, n)]
    return [native_cut(image.thumbnail, patch_size), *tiles]


def read_sizes(image_sizes: Any, count: int) -> list[HeightWidth]:
    """Reads the sizes of `count` images.

    Raises:
        ValueError: they are missing, of another number or shape, or below one pixel.
    """
    if image_sizes is None:
        raise ValueError(
            "image_sizes, (height, width) of each original image, are missing: the tokens of LLaVA-NeXT take their"
            " places by them; give all that the attached processor returns"
        )
    sizes = image_sizes if isinstance(image_sizes, Tensor) else torch.tensor(image_sizes, device="cpu")
    if sizes.dtype not in INTEGERS or sizes.shape != (count, 2) or (sizes < 1).any():
        what = sizes.tolist() if sizes.numel() <= 8 else tuple(sizes.shape)
        raise ValueError(f"image_sizes are {what} ({sizes.dtype}); they must be int64 ({count}, 2), {AS_GIVEN}")
    return [(height, width) for height, width in sizes.tolist()]


class NextImageProcessor(QLIPImageProcessor):
    """QLIP's image processor for LLaVA-NeXT: it also packs `image_sizes`, and cuts tiles where the settings say so."""

    model_input_names = [*PACKED_NAMES, "image_sizes"]

    tiles: NextTiles | None = None
    """Set by `qlip.attach`, or read from the processor's file."""

    def to_dict(self) -> dict[str, Any]:
        """Builds what `save_pretrained` writes: with the tiles, unless the model's own processor is written."""
        values = super().to_dict()
        return values if self.plain is not None or self.tiles is None else {**values, "tiles": asdict(self.tiles)}

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Inverts `to_dict`; see `QLIPImageProcessor.from_dict`.

        Raises:
            ValueError: the values are those of another image processor, or each tile is to have a quadtree.
        """
        given = super().from_dict(image_processor_dict, **kwargs)
        processor, tiles = given[0] if isinstance(given, tuple) else given, image_processor_dict.get("tiles")
        if tiles is None:
            raise ValueError(
                "preprocessor_config.json has no 'tiles': it is not a NextImageProcessor's; load it by"
                " qlip.QLIPImageProcessor.from_pretrained"
            )
        if processor.qlip.tiling == "tiles":
            raise ValueError(
                "tiling is 'tiles', which the model's own processor makes; give that to qlip.attach, or tiling='image'"
            )
        pinpoints = tuple((height, width) for height, width in tiles["pinpoints"])
        processor.tiles = NextTiles(pinpoints, tiles["side"], tiles["native_grid"])
        return given

    def pack(self, images: Any, **options: Any) -> BatchFeature:
        """Packs images, see `QLIPImageProcessor.pack`, with `image_sizes`, int64 (B, 2): heights and widths."""
        originals = [
            to_rgb(to_pillow(image)) for image in list_images(self.fetch_images(images))
        ]  # upright before they are measured
        packed = super().pack(originals, **options)
        packed["image_sizes"] = torch.tensor([(image.height, image.width) for image in originals], device="cpu")
        return packed

    def cut_originals(self, images: Sequence[Any]) -> list[CutImage]:
        """Cuts RGB images."""
        if self.qlip.tiling == "image":
            return super().cut_originals(images)
        return [self._cut_tiles(image) for image in images]

    def count_placeholders(self, packed: Mapping[str, Tensor]) -> list[int]:
        """Counts the tokens, newlines included, of each packed image."""
        trees = unpack_leaves(packed["leaf_boxes"], packed["leaf_grids"])
        orders = self._find_tiles().order(self.qlip, trees, packed["image_sizes"])
        return [len(order.order) for order in orders]

    def _find_tiles(self) -> NextTiles:
        if self.tiles is None:
            raise ValueError("this NextImageProcessor has no tiles; take the one that qlip.attach returns")
        return self.tiles

    def _cut_tiles(self, image: Image.Image) -> CutImage:
        """Cuts the tiles that the model's own image processor makes of an RGB image."""
        pixels = self.plain(image, return_tensors="pt")["pixel_values"][0].float()
        return self._find_tiles().cut(pixels, (image.height, image.width), self.qlip, self.patch_size)
