"""Opens, resizes and cuts images for a vision tower, without the model. Loads torch and Pillow, no models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from llava.images import ImageError, ImageLimits, load_image
from llava.model.vision.prepared_image import PreparedImage, prepare_leaves, prepare_pixels
from qlip.config import QLIPConfig
from qlip.images.limits import LOCAL_LIMITS
from qlip.images.pictures import without_pixel_limit

if TYPE_CHECKING:
    from llava.model.multimodal_encoder.base import VisionTower

Source = str | Path


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be opened."""

    reason: str
    """Shown to the user."""


@dataclass(frozen=True)
class Preparer:
    """Source -> `PreparedImage`, without the model; can be sent to other processes."""

    processor: Any
    """An `ImageCutter`, or a CLIP or SigLIP image processor."""
    settings: QLIPConfig | None
    """The quadtree's."""
    aspect_ratio: str | None
    """The model's `image_aspect_ratio`."""
    native_tokens: int
    """Tokens of an image of the native size."""
    limits: ImageLimits = LOCAL_LIMITS
    """Limits on an image's file and pixels."""
    pinpoints: Any = None
    """The model's `image_grid_pinpoints`, for anyres."""
    merge: str = "flat"
    """The model's `mm_patch_merge_type`."""
    side: int | None = None
    """Side in pixels of the images that the tower was trained on; None is the cutter's own."""

    @classmethod
    def of(cls, tower: VisionTower) -> Preparer:
        """Builds the preparer for a tower, which needs no weights."""
        cutter = getattr(tower.image_processor, "cutter", None)
        processor = tower.image_processor if cutter is None else cutter
        settings = None if cutter is None else tower.image_processor.qlip
        config = tower.llava_config
        tiling = {"pinpoints": config.image_grid_pinpoints, "merge": config.mm_patch_merge_type}
        ratio, side = config.image_aspect_ratio, tower.input_size
        return cls(processor, settings, ratio, tower.native_tokens, **tiling, side=side)

    @property
    def tiling(self) -> SimpleNamespace:
        """The fields of the model's configuration that say how images are padded or tiled."""
        return SimpleNamespace(
            image_aspect_ratio=self.aspect_ratio, image_grid_pinpoints=self.pinpoints, mm_patch_merge_type=self.merge
        )

    def by_score(self) -> Preparer:
        """Builds the preparer for training, where no question can decide what is split."""
        return self if self.settings is None else replace(self, settings=replace(self.settings, budget="score"))

    def __call__(self, source: Source) -> PreparedImage | Unreadable:
        """Opens and prepares an image."""
        try:
            with without_pixel_limit():
                image = load_image(source, self.limits)
        except ImageError as error:
            return Unreadable(str(error))
        if self.settings is not None:
            return prepare_leaves(image, self.processor, self.settings, self.tiling, self.side)
        return prepare_pixels(image, self.processor, self.tiling, self.native_tokens)
