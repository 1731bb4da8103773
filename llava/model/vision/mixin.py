"""Encodes images with a LLaVA model's tower and projector; a mixin of its causal language models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.qlip_encoder import QLIPVisionTower
from llava.model.vision.anyres import TileLayout, joins_tiles, plan_tiles
from llava.model.vision.image_tokens import ImageTokens, stack_features
from llava.model.vision.input_checks import check_images
from llava.model.vision.quadtree_tiles import order_cuts, plan_leaves

Images = Tensor | Sequence[Tensor] | Sequence[ImageTokens]
"""Pixels of each image, or its tokens from `encode_tokens`: encode once, ask often."""

ImageSizes = Sequence[Sequence[int] | None] | Tensor | None
"""(width, height) in pixels of each image before it was prepared; None where it has no tiles to join."""


class ImageEncodingMixin:
    """Turns pixels into tokens of the language model's width."""

    config: Any
    model: Any

    def get_model(self) -> Any:
        """The trunk."""
        return self.model

    def get_vision_tower(self) -> VisionTower | None:
        """The tower; None for a text-only model."""
        return self.get_model().get_vision_tower()

    def encode_images(self, images: Images, image_sizes: ImageSizes = None) -> Tensor | list[Tensor]:
        """Computes projected features of images (see `encode_tokens`), for callers that need no positions.

        Returns:
            (B, N, D) where all images have the same number of tokens, as with CLIP; else a list of (N_i, D).
        """
        return stack_features(self.encode_tokens(images, image_sizes))

    def encode_tokens(self, images: Images, image_sizes: ImageSizes = None) -> list[ImageTokens]:
        """Encodes images and projects them to the language model's width, each in one pass.

        Args:
            images: pixels; images that are encoded already are returned unchanged.
            image_sizes: of each image; needed where `mm_patch_merge_type` joins its tiles to a raster.

        Raises:
            TypeError, ValueError: see `check_images`.
            ValueError: the model has no vision tower, or it is not loaded; or `image_sizes` is missing or wrong.
        """
        check_images(images)
        encoded = [image for image in images if isinstance(image, ImageTokens)]
        if len(encoded) == len(images):
            return encoded
        tower = self.get_vision_tower()
        if tower is None or not tower.is_loaded:
            raise ValueError("images were given, but the model has no vision tower loaded")
        if encoded:
            raise TypeError("some images are encoded and some are pixels; give one kind")
        pixels = cast(Tensor | Sequence[Tensor], images)
        if isinstance(tower, QLIPVisionTower) and joins_tiles(self.config):
            return self._encode_leaves(pixels, image_sizes, tower)
        layouts = self._plan(pixels, image_sizes, tower.config.image_size)  # before the tower runs
        tokens = tower.encode_tokens(pixels)
        return self.project([image.with_tiles(layout) for image, layout in zip(tokens, layouts, strict=True)])

    def encode_some(self, images: Images | None, sizes: ImageSizes, shares: Sequence[range]) -> dict[int, ImageTokens]:
        """Encodes the images in `shares`; returns their tokens by index. The arguments are as in `encode_tokens`."""
        which = [i for share in shares for i in share]
        if images is None or not which:
            return {}
        if len(which) == len(images):
            return dict(zip(which, self.encode_tokens(images, sizes), strict=True))
        chosen: Any = images[which] if isinstance(images, Tensor) else [images[i] for i in which]
        own: Any = None if sizes is None else [sizes[i] for i in which]
        return dict(zip(which, self.encode_tokens(chosen, own), strict=True))

    def project(self, tokens: Sequence[ImageTokens]) -> list[ImageTokens]:
        """Projects the tower's tokens of some images to the language model's width, in one pass, and joins tiles."""
        projector, newline = self.get_model().mm_projector, getattr(self.get_model(), "image_newline", None)
        features = torch.cat([image.features for image in tokens])
        if (weight := next(projector.parameters(), None)) is not None and weight.is_floating_point():
            features = features.to(weight.dtype)  # LLaVA's callers convert the tower alone
        projected = projector(features).split([len(image.features) for image in tokens])
        images = [image.with_features(feature) for image, feature in zip(tokens, projected, strict=True)]
        return [image.join_tiles(newline) for image in images]

    def _encode_leaves(self, images: Any, image_sizes: ImageSizes, tower: QLIPVisionTower) -> list[ImageTokens]:
        """Encodes images by a quadtree in place of tiles, each in the order of the raster that it would have had."""
        sizes = _sizes(images, image_sizes)
        pairs = zip(images, sizes, strict=True)
        rules = tower.config.image_size, tower.settings, tower.image_processor.cutter
        layouts = [plan_leaves(self.config, size, image, *rules) for image, size in pairs]
        cuts = [tower.cut(image, layout) for image, layout in zip(images, layouts, strict=True)]
        n, settings, encoded = tower.num_patches_per_side, tower.settings, tower.encode_tokens(cuts)
        parts = zip(encoded, cuts, layouts, strict=True)
        return self.project([tokens.with_tiles(order_cuts(cut, layout, settings, n)) for tokens, cut, layout in parts])

    def _plan(
        self, images: Tensor | Sequence[Tensor], image_sizes: ImageSizes, side: int
    ) -> Sequence[TileLayout | None]:
        """Plans how each image's tiles are joined; one tensor (B, C, H, W) is a batch without tiles, as in LLaVA."""
        if not joins_tiles(self.config) or (isinstance(images, Tensor) and images.ndim == 4):
            return [None] * len(images)
        sizes = _sizes(images, image_sizes)
        counts = [len(image) if image.ndim == 4 else 1 for image in images]
        return [plan_tiles(self.config, size, count, side) for size, count in zip(sizes, counts, strict=True)]


def _sizes(images: Tensor | Sequence[Any], image_sizes: ImageSizes) -> Any:
    """Finds the size of each image, None where none is given.

    Raises:
        ValueError: another number of sizes than of images.
    """
    if image_sizes is not None and len(image_sizes) != len(images):
        raise ValueError(f"{len(images)} images were given, but {len(image_sizes)} image_sizes")
    return [None] * len(images) if image_sizes is None else image_sizes
