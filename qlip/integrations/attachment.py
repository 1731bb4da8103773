"""The QLIP of an attached model: its tower over leaves, and what its images are prepared and encoded with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qlip.config import QLIPConfig
from qlip.encoder import QLIPVisionModel
from qlip.image_processing import QLIPImageProcessor
from qlip.integrations.next_tiles import NextTiles, split_cut
from qlip.language_positions import BIASABLE
from qlip.packing import check_pair, pack, unpack
from qlip.patches import CutImage
from qlip.quadtree import Leaves
from qlip.tiles import TokenOrder

OFFLOADED = "the vision tower is offloaded; give it a device in device_map (it is small)"
NO_PROMPT = "images were given without input_ids: their places can't be found in embeddings"
# What `refuse_missing` says, by why the arguments are missing:
IN_EMBEDDINGS = (
    "images were given without input_ids: their places can't be found in embeddings; give {missing} (see place_images)"
)
NEW_WITH_CACHE = (
    "new images were given with a cache, but without their positions in the conversation; call `generate` with the"
    " whole conversation and all its images; or give {missing} (see place_images)"
)
WITHOUT_LEAVES = (
    "encoded images are given without leaf_boxes and leaf_grids; give both, or {missing} (see place_images)"
)
IN_TRUNK = (
    "{model} is given images without {missing}: call the model around it, or give both from its place_images"
    " (qlip.key_bias makes the bias of its sizes)"
)
PROCESSOR = "prepare images with the processor that qlip.attach returned for this model"


def check_attention(attention: str) -> None:
    """Raises ValueError unless a tower's attention takes a padding mask."""
    if attention not in BIASABLE:
        raise ValueError(
            f"the vision tower's attention is {attention!r}, which takes no padding mask; load the model with"
            " attn_implementation={'vision_config': 'sdpa'}, or call set_attn_implementation with that dict"
        )


class SavedSettings(NamedTuple):
    """The settings that a checkpoint held before `attach`."""

    entry: Any
    """The configuration's entry `qlip`; None if there was none."""

    settings: QLIPConfig
    """What it says, with the prior's path made absolute; the defaults if it says nothing."""


@dataclass
class Attachment:
    """The parts of QLIP in one model."""

    vision: QLIPVisionModel
    """The model's own vision tower over leaves; holds the settings."""

    image_processor: QLIPImageProcessor
    """Cuts images with the same settings."""

    plain_processor: Any = None
    """The processor that `attach` was given."""

    tiles: NextTiles | None = None
    """The tiles whose places leaves take, of LLaVA-NeXT."""

    saved: SavedSettings = SavedSettings(None, QLIPConfig())
    """What the checkpoint held: another `attach` starts from it, and `detach` restores it."""

    @property
    def cuts_tiles(self) -> bool:
        """Whether an image is a base and tiles, with a quadtree in each."""
        return self.tiles is not None and self.vision.qlip.tiling == "tiles"

    @torch.compiler.disable  # see `qlip.untraced`
    def cut(self, pixel_values: Any, leaf_boxes: Tensor | None, leaf_grids: Tensor | None) -> list[CutImage]:
        """Cuts images in either form that a model takes, on the tower's device.

        Args:
            pixel_values: packed (patches, C, P, P) with leaves; else whole images (B, C, H, W), or (C, H, W) each.
            leaf_boxes: (B, N, 3) or None.
            leaf_grids: (B, 2) or None.

        Raises:
            TypeError: they are no tensors, or whole images are not floating point.
            ValueError: the tensors do not match each other, or this model's patches; or its tower takes no mask.
        """
        if not hasattr(pixel_values, "__len__"):
            raise TypeError(
                f"pixel_values are a {type(pixel_values).__name__}; give what the attached processor makes of images,"
                " or normalised tensors"
            )
        if len(pixel_values) == 0:
            raise ValueError("pixel_values hold no image; give at least one, or leave them out for text alone")
        check_attention(self.vision.adapter.attention)  # it may have been set since `attach`
        check_pair(leaf_boxes, leaf_grids)
        if leaf_boxes is not None and leaf_grids is not None:
            images = unpack(pixel_values, leaf_boxes, leaf_grids)
            self._check_patches(images[0])
        else:
            self._check_whole(pixel_values)
            images = [self.image_processor.cut(image) for image in pixel_values]
        device = self.vision.position_table.device
        if device.type == "meta":  # accelerate has taken the weights away since
            raise ValueError(OFFLOADED)
        return [image.to(device) for image in images]

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """(C, P, P) of a patch."""
        return tuple(self.vision.adapter.patch_projection.weight.shape[1:])

    def _check_patches(self, image: CutImage) -> None:
        """Raises unless an image was cut for this model under its settings; one image represents its batch."""
        given = image.thumbnail is not None
        if self.cuts_tiles and not given:
            raise ValueError(
                f"the images were cut without tiles, the model is attached with tiling='tiles'; {PROCESSOR}"
            )
        if not self.cuts_tiles and given != (own := self.vision.qlip.thumbnail):
            raise ValueError(f"the images were cut with thumbnail={given}, the model has thumbnail={own}; {PROCESSOR}")
        shape, native = tuple(image.patches.shape[1:]), self.vision.native_grid
        if shape != self.patch_shape:
            raise ValueError(f"pixel_values are patches of {shape}, the model's are {self.patch_shape}; {PROCESSOR}")
        side = native if image.thumbnail is None else image.thumbnail.shape[1] // shape[1]
        if side != native:
            raise ValueError(f"the thumbnails have {side} x {side} patches, the model {native} x {native}; {PROCESSOR}")

    def _check_whole(self, pixel_values: Any) -> None:
        """Raises ValueError unless these are whole images, and the model takes such."""
        if self.cuts_tiles:
            raise ValueError(
                "pixel_values without leaf_boxes are given; with tiling 'tiles' the model's processor makes the tiles:"
                " give all that the attached processor returns"
            )
        channels, size, _ = self.patch_shape
        for image in pixel_values:
            shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            if not isinstance(image, Tensor) or image.ndim != 3 or len(image) != channels:
                raise ValueError(
                    f"pixel_values are {shape} for each image, without leaf_boxes: give all that the attached processor"
                    f" returns, or whole images, tensors of ({channels}, height, width)"
                )
        if isinstance(pixel_values, Tensor) and pixel_values.shape[2:] == (size, size):
            raise ValueError(
                f"pixel_values are {tuple(pixel_values.shape)}, patches of {size} x {size} pixels, and leaf_boxes and"
                f" leaf_grids are missing: {PROCESSOR} and give all it returns; whole images of one patch go in a list"
            )

    def find_missing(self, position_ids: Tensor | None, key_bias: Tensor | None) -> list[str]:
        """Lists the arguments that images need in the language model under these settings but that are missing."""
        settings = self.vision.qlip
        return list_missing(settings.llm_positions == "raster", settings.biases_language_model, position_ids, key_bias)

    def pack(self, pixel_values: Any) -> dict[str, Tensor]:
        """Packs whole images (B, C, H, W), or (C, H, W) each."""
        return pack(self.cut(pixel_values, None, None), self.image_processor.patch_size)

    def order(self, trees: Sequence[Leaves], image_sizes: Any) -> list[TokenOrder] | None:
        """Orders the tokens of images in LLaVA-NeXT, see `NextTiles.order`; other models keep the tower's: None."""
        return None if self.tiles is None else self.tiles.order(self.vision.qlip, trees, image_sizes)

    def encode(self, images: Sequence[CutImage], select: Sequence[int] | None = None) -> list[Tensor]:
        """Encodes images: (M_i, D) each, in the tower's order.

        Args:
            images: from `cut`.
            select: layers, counted from 0; None is the tower's own.
        """
        if not self.cuts_tiles:
            return self.vision.encode_cut(images, select=select).features
        settings = replace(self.vision.qlip, thumbnail=False)
        parts = [split_cut(image, self.vision.native_grid, self.image_processor.patch_size) for image in images]
        joined = [part for own in parts for part in own]
        features = iter(self.vision.encode_cut(joined, select=select, settings=settings).features)
        return [torch.cat([next(features) for _ in own]) for own in parts]


def list_missing(
    needs_positions: bool, needs_bias: bool, position_ids: Tensor | None, key_bias: Tensor | None
) -> list[str]:
    """Names the arguments of a language model that are needed but None."""
    missing = ["position_ids"] if needs_positions and position_ids is None else []
    return missing + (["key_bias"] if needs_bias and key_bias is None else [])


def refuse_missing(sentence: str, missing: Sequence[str], model: str = "") -> None:
    """Raises ValueError if arguments are missing: a sentence with places for their names and the model's."""
    if missing:
        raise ValueError(sentence.format(missing=" and ".join(missing), model=model))


def image_sizes_of(pixel_values: Any) -> Tensor:
    """Measures whole images: int64 (B, 2), heights and widths."""
    return torch.tensor([tuple(image.shape[1:]) for image in pixel_values], device="cpu")
