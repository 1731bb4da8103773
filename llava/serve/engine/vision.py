"""How a request's pictures are seen: its own QLIP options over the server's, and the pictures prepared accordingly.

One loaded tower serves requests of different settings side by side; none of them changes it. CLIP's own view is the
quadtree of alpha 0 at the native size, which is CLIP to float tolerance, so that no second tower is needed. Knows
nothing of prompts or generation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from torch import Tensor

from llava.images import Fit
from llava.mm_utils import process_images
from llava.model.multimodal_encoder.base import ImageTokens
from llava.model.multimodal_encoder.qlip_encoder import QLIPVisionTower
from llava.serve.engine.params import SERVERS_OWN, QLIPOptions
from qlip import Leaves, QLIPConfig, QLIPImageProcessor
from qlip.patches import CutImage

Picture = Image.Image | Callable[[], Image.Image]
"""An image, RGB, or what opens it, such as an `ImageOpener`: large ones need not lie in memory before their turn."""

CLIP_VIEW = QLIPConfig(alpha=0.0, max_tokens=None, llm_size_bias=0.0)
"""The settings under which QLIP is CLIP, for pictures that CLIP's own processor has prepared."""


@dataclass(frozen=True)
class View:
    """One picture as the tower will see it."""

    pixels: Tensor | None
    """float32 (C, H, W), or (tiles, C, H, W); None where the leaves are all that is kept."""
    settings: QLIPConfig | None
    """The quadtree's; None for a tower without one."""
    cut: CutImage | None
    """The quadtree's leaves, cut out; None for CLIP's view."""
    tokens: int
    """Visual tokens in the language model."""
    context: int
    """How much of the context it takes: tokens or positions, whichever are more."""
    uniform_tokens: int
    """Tokens of the uniform grid on the same pixels."""

    def for_tower(self) -> View:
        """What a tower needs of it: the leaves, if it was cut, without the pixels around them."""
        return self if self.cut is None else replace(self, pixels=None)

    @property
    def leaves(self) -> Leaves | None:
        """The quadtree; None for CLIP's view."""
        return None if self.cut is None else self.cut.leaves


class VisionFrontend:
    """The eyes of a loaded model."""

    def __init__(
        self, model: Any, image_processor: Any, quadtree: bool = True, max_tokens: int = 4096, max_size: int = 4096
    ) -> None:
        """
        Args:
            model: A LLaVA model; may be without a tower.
            image_processor: Prepares pictures for its tower.
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
        """The tower, if it can see by quadtree."""
        return self.tower if isinstance(self.tower, QLIPVisionTower) else None

    def settings(self, options: QLIPOptions = SERVERS_OWN) -> QLIPConfig | None:
        """Returns the settings that a request's pictures are seen with; None for CLIP's view.

        Raises:
            ValueError, TypeError: an option is out of range or beyond the server's limits, or the model can't do it.
        """
        changes = options.changes()
        if options.enabled is False and changes:
            raise ValueError(f"qlip is not enabled, so it takes no {', '.join(changes)}")
        tower = self.quadtree_tower
        if tower is None:
            if options.enabled or changes:
                raise ValueError("this model sees by CLIP's uniform grid only; leave the qlip options out")
            return None
        for name, limit in self.limits.items():
            if name in changes and changes[name] > limit:
                raise ValueError(f"{name} is {changes[name]}; this server allows at most {limit}")
        settings = replace(tower.settings, **changes)  # checks the values
        enabled = bool(changes) or self.quadtree if options.enabled is None else options.enabled
        return settings if enabled else None

    def fit(self, settings: QLIPConfig | None) -> Fit | None:
        """Says what an image will be resized to first; None where that is for another image processor to know."""
        tower = self.quadtree_tower
        if tower is None or settings is None:
            return None
        return tower.under(settings).image_processor.fit

    def look(self, image: Image.Image, settings: QLIPConfig | None) -> View:
        """Prepares a picture and counts its tokens, without running the tower.

        Args:
            image: The picture.
            settings: As `settings` gives them.

        Raises:
            ValueError: the model has no vision tower.
        """
        if self.tower is None:
            raise ValueError("this model has no vision tower: ask it without pictures")
        tower = self.quadtree_tower
        if tower is not None and settings is not None:
            return quadtree_view(image, tower.under(settings).image_processor)
        processor = self.image_processor if tower is None else tower.native_processor
        pixels = process_images([image], processor, self.model.config)[0]
        tiles = list(pixels) if pixels.ndim == 4 else [pixels]
        if tower is not None:
            tokens = context = tower.num_patches * len(tiles)
            return View(pixels, CLIP_VIEW, None, tokens, context, tokens)
        tokens = sum(self.tower.count_tokens(tile) for tile in tiles)
        context = sum(max(self.tower.count_tokens(tile), self.tower.count_positions(tile)) for tile in tiles)
        return View(pixels, None, None, tokens, context, tokens)

    def encode(self, views: Sequence[View]) -> list[ImageTokens]:
        """Runs the tower and the projector; pictures of the same settings go through together.

        Args:
            views: As `look` gives them.

        Returns:
            One entry per view, in order.
        """
        tokens: dict[int, ImageTokens] = {}
        for kind in dict.fromkeys(map(_kind, views)):
            group = [i for i, view in enumerate(views) if _kind(view) == kind]
            tokens.update(zip(group, self._run_tower([views[i] for i in group]), strict=True))
        return self.model.project([tokens[i] for i in range(len(views))]) if views else []

    def _run_tower(self, views: Sequence[View]) -> list[ImageTokens]:
        """The tower's tokens of pictures of one kind."""
        tower, settings = self.quadtree_tower, views[0].settings
        if tower is None or settings is None:
            return self.tower.encode_tokens([view.pixels for view in views])
        cuts = [view.cut for view in views if view.cut is not None]
        return tower.under(settings).encode_tokens(cuts or [view.pixels for view in views])


def _kind(view: View) -> tuple[QLIPConfig | None, bool]:
    """What pictures must share to go through the tower together; a request's settings may happen to be CLIP's view."""
    return view.settings, view.cut is None


def quadtree_view(picture: Image.Image, processor: QLIPImageProcessor) -> View:
    """Returns a picture as a quadtree tower sees it whose image processor this is; needs no tower.

    Args:
        picture: The picture.
        processor: Says the settings, too.
    """
    settings, native_tokens = processor.qlip, processor.native_grid**2
    pixels = processor.preprocess(picture, return_tensors="pt")["pixel_values"][0]
    cut = processor.cut(pixels)
    tokens = len(cut.leaves) + (native_tokens if settings.thumbnail else 0)
    context = max(tokens, native_tokens) if settings.llm_positions == "raster" else tokens
    rows, cols = cut.leaves.grid
    return View(pixels, settings, cut, tokens, context, rows * cols)
