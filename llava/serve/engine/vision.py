"""Turns request images into projected visual tokens, under each request's QLIP options.

One loaded tower serves requests of different settings at once; none of them changes it. CLIP's uniform grid is the
quadtree of alpha 0 at the native size, equal to CLIP to float tolerance, so that no second tower is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from llava.images import Fit
from llava.model.multimodal_encoder.qlip_encoder import QLIPVisionTower, check_counting
from llava.model.vision.encoding import encode_prepared
from llava.model.vision.prepared_image import PreparedImage, prepare_leaves, prepare_pixels
from llava.model.vision.quadtree_tiles import has_tiles
from llava.serve.engine.params import SERVER_DEFAULTS, QLIPOptions
from qlip.config import QLIPConfig

if TYPE_CHECKING:
    from llava.model.vision.image_tokens import ImageTokens

Picture = Image.Image | Callable[[], Image.Image]
"""An RGB image, or a function that opens it, such as an `ImageOpener`: large images are opened one at a time."""

RequestSettings = QLIPOptions | QLIPConfig | None
"""A request's own options, or what `VisionFrontend.settings` computed from them."""

CLIP_VIEW = QLIPConfig(alpha=0.0, max_tokens=None, llm_positions="sequential", llm_size_bias=0.0)
"""The settings under which QLIP equals CLIP, for images that CLIP's own processor has prepared."""


def check_pictures(images: Any) -> None:
    """Raises TypeError unless `images` is a sequence of `Picture`s."""
    advice = "it must be a list of Pillow images, as llava.images.load_image opens them"
    if isinstance(images, Image.Image | str | bytes) or not isinstance(images, Sequence):
        raise TypeError(f"images is a {type(images).__name__}; {advice}")
    for image in images:
        if not (isinstance(image, Image.Image) or callable(image)):
            raise TypeError(f"images holds a {type(image).__name__}; {advice}")


class VisionFrontend:
    """Turns images into projected tokens with a loaded model."""

    def __init__(
        self, model: Any, image_processor: Any, quadtree: bool = True, max_tokens: int = 4096, max_size: int = 4096
    ) -> None:
        """
        Args:
            model: A LLaVA model, with or without a tower.
            image_processor: Prepares images for its tower.
            quadtree: Whether a quadtree tower uses its quadtree where a request does not say.
            max_tokens: Largest token budget that a request may ask for.
            max_size: Largest image size that a request may ask for, in pixels.
        """
        self.model = model
        self.image_processor = image_processor
        self.quadtree = quadtree
        self.limits = {"max_tokens": max_tokens, "image_size": max_size}

    @property
    def tower(self) -> Any:
        """The vision tower."""
        return self.model.get_vision_tower()

    @property
    def quadtree_tower(self) -> QLIPVisionTower | None:
        """The tower, if it is a quadtree tower."""
        return self.tower if isinstance(self.tower, QLIPVisionTower) else None

    def settings(self, options: RequestSettings = SERVER_DEFAULTS) -> QLIPConfig | None:
        """Computes the settings for a request's images; None for CLIP's uniform grid.

        Args:
            options: The request's; settings that were computed before are returned unchanged.

        Raises:
            ValueError, TypeError: an option is out of range or above the server's limit, or the model has no quadtree.
        """
        if options is None or isinstance(options, QLIPConfig):
            return options
        if not isinstance(options, QLIPOptions):
            raise TypeError(f"qlip is {options!r}; it must be QLIPOptions, such as QLIPOptions(alpha=0.5)")
        changes = options.changes()
        if options.enabled is False and changes:
            raise ValueError(f"qlip is not enabled, so it takes no {', '.join(changes)}")
        tower = self.quadtree_tower
        if tower is None:
            if options.enabled or changes:
                raise ValueError("this model has CLIP's uniform grid only; leave the qlip options out")
            return None
        settings = replace(tower.settings, **changes)  # checks the values
        for name, limit in self.limits.items():
            if name in changes and changes[name] > limit:
                raise ValueError(f"qlip.{name} is {changes[name]}; this server allows at most {limit}")
        check_counting(self.model.config, settings)
        enabled = bool(changes) or self.quadtree if options.enabled is None else options.enabled
        return settings if enabled else None

    def make_fit(self, settings: QLIPConfig | None) -> Fit | None:
        """Finds the function to the size that images are resized to, once; None where it takes the original image."""
        tower = self.quadtree_tower
        if tower is None or settings is None or settings.geometry == "native" or settings.noise_floor:
            return None
        if has_tiles(self.model.config):  # the original's size decides where its tokens lie
            return None
        return tower.image_processor.cutter.make_fit(settings)

    def prepare(self, image: Image.Image, settings: QLIPConfig | None) -> PreparedImage:
        """Prepares an image and counts its tokens, without running the tower.

        Args:
            image: The image, of any mode; it is turned upright, and put on white where it is transparent.
            settings: From `settings`.

        Raises:
            ValueError: the model has no vision tower.
        """
        if self.tower is None:
            raise ValueError("this model has no vision tower: ask it without images")
        tower, config = self.quadtree_tower, self.model.config
        if tower is None:
            return prepare_pixels(image, self.image_processor, config, self.tower.native_tokens)
        if settings is None:
            return prepare_pixels(image, tower.native_processor, config, tower.native_tokens, CLIP_VIEW)
        return prepare_leaves(image, tower.image_processor.cutter, settings, config, tower.input_size)

    def encode(self, images: Sequence[PreparedImage]) -> list[ImageTokens]:
        """Encodes prepared images; see `llava.model.vision.encoding`."""
        return encode_prepared(self.model, images)
