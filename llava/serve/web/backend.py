"""Where the page's answers and views come from: an engine in this process, or whatever else keeps the same promise.

Knows neither the page nor its visitors.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from llava.model.multimodal_encoder.base import VisionTower
from llava.model.prepared_image import PreparedImage
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import QLIPOptions, Sampling
from llava.serve.engine.prompting import Turn, build_conversation
from qlip import QLIPConfig


@dataclass(frozen=True)
class Query:
    """What a visitor asks for."""

    turns: Sequence[Turn]
    """The conversation; the last turn is the question."""
    sampling: Sampling
    qlip: QLIPOptions
    model: str = ""
    """One of the backend's; "" where it has one only."""


@dataclass(frozen=True)
class Piece:
    """A part of an answer."""

    text: str = ""
    visual_tokens: int | None = None
    """How many the model says it has read; None where it does not say."""


@dataclass(frozen=True)
class Pixels:
    """How a tower's pixels are read back."""

    patch_size: int
    """Pixels per side of a patch."""
    mean: Tensor
    """float32 (C, 1, 1)."""
    std: Tensor
    """float32 (C, 1, 1)."""


class Backend(Protocol):
    """Answers questions about pictures, and shows how pictures are seen."""

    defaults: QLIPConfig | None
    """How the quadtree is set where nobody says; None where there is no quadtree."""
    quadtree: bool
    """Whether the quadtree is used where nobody says."""
    native_tokens: int
    """Visual tokens of CLIP's own view."""
    max_tokens: int
    """Largest token budget worth asking for."""
    pixels: Pixels

    @property
    def note(self) -> str:
        """What a visitor should know about how views come about; may be empty."""

    async def models(self) -> list[str]:
        """Returns the models to choose from; none where there is no choice."""

    def look(self, picture: Image.Image, options: QLIPOptions) -> PreparedImage:
        """Prepares a picture and counts its tokens, without running a model."""

    def ask(self, query: Query) -> AsyncGenerator[Piece, None]:
        """Yields the answer's pieces, the first once the request is taken on. Closing the iterator stops the model."""


class EngineBackend:
    """A model in this process."""

    note = ""

    def __init__(self, engine: ChatEngine) -> None:
        self.engine = engine
        tower: VisionTower = engine.vision.tower
        quadtree = engine.vision.quadtree_tower
        self.defaults = None if quadtree is None else quadtree.settings
        self.quadtree = quadtree is not None and engine.vision.quadtree
        self.native_tokens = tower.num_patches
        self.max_tokens = min(engine.context_len, engine.limits.max_image_tokens)
        self.pixels = pixels_of(tower.native_processor, tower.config.patch_size)

    async def models(self) -> list[str]:
        """Returns no models: the engine has one, and there is nothing to choose."""
        return []

    def look(self, picture: Image.Image, options: QLIPOptions) -> PreparedImage:
        """See `Backend`."""
        return self.engine.vision.prepare(picture, self.engine.vision.settings(options))

    async def ask(self, query: Query) -> AsyncGenerator[Piece, None]:
        """See `Backend`; errors are the engine's."""
        conversation, images = build_conversation(self.engine, query.turns)
        answer = await self.engine.asubmit(conversation, images, query.sampling, query.qlip, shorten=True)
        try:
            yield Piece(visual_tokens=answer.usage.visual_tokens)
            async for text in answer:
                yield Piece(text)
        finally:
            answer.cancel()


def pixels_of(processor: object, patch_size: int) -> Pixels:
    """Returns how to read back what an image processor gives."""
    mean, std = (torch.tensor(getattr(processor, name))[:, None, None] for name in ("image_mean", "image_std"))
    return Pixels(patch_size, mean, std)
