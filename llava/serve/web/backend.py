"""The interface between the page and its models, and its implementation by an engine in this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from llava.conversation import Conversation
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.vision.prepared_image import PreparedImage
from llava.serve.engine import ChatEngine
from llava.serve.engine.explain import Explanation
from llava.serve.engine.params import QLIPOptions, Sampling
from llava.serve.engine.prompting import Turn, build_conversation
from qlip import QLIPConfig


@dataclass(frozen=True)
class Query:
    """A request for an answer."""

    turns: Sequence[Turn]
    """The conversation; the last turn is the question."""
    sampling: Sampling
    qlip: QLIPOptions
    model: str = ""
    """Name of one of the backend's models; "" if it has only one."""


TEXT_TOKENS = 128
"""Tokens of the context that a picture leaves to question and answer."""


@dataclass(frozen=True)
class FirstPass:
    """What it cost to ask the question about the unsplit pictures, with a question-aware budget."""

    tokens: int
    """Visual tokens of the unsplit pictures."""
    seconds: float
    """Until all questions of the batch were asked."""

    @classmethod
    def of(cls, tokens: int, seconds: float) -> FirstPass | None:
        """Makes the cost; None of no tokens, where no question was asked first."""
        return cls(tokens, seconds) if tokens > 0 else None


@dataclass(frozen=True)
class AnswerPiece:
    """A part of an answer."""

    text: str = ""
    visual_tokens: int | None = None
    """Visual tokens as reported by the model; None if not reported."""
    first_pass: FirstPass | None = None
    """As reported by the model; None if not reported, or if no question decides on the leaves."""
    finish_reason: str | None = None
    """Why the answer ended, in its last piece ("length" where it was cut off); None if not reported."""


@dataclass(frozen=True)
class Pixels:
    """How to turn a tower's normalised pixels back into an image."""

    patch_size: int
    """Side of a patch in pixels."""
    mean: Tensor
    """float32 (C, 1, 1)."""
    std: Tensor
    """float32 (C, 1, 1)."""


class Backend(Protocol):
    """Answers questions about pictures, and shows how a model sees them."""

    defaults: QLIPConfig | None
    """Default settings of the quadtree; None without a quadtree."""
    quadtree: bool
    """Whether the quadtree is used by default."""
    native_tokens: int
    """Number of visual tokens on CLIP's grid."""
    max_tokens: int
    """Largest token budget that a request may ask for."""
    pixels: Pixels
    name: str
    """Name of the model, where there is no choice."""
    explains: bool
    """Whether `explain` is known."""

    @property
    def note(self) -> str:
        """What visitors should know about the drawings; may be empty."""

    async def models(self) -> list[str]:
        """Lists the models to choose from; empty if there is no choice."""

    def prepare(self, picture: Image.Image, options: QLIPOptions) -> PreparedImage:
        """Prepares a picture and counts its tokens, without running a model."""

    async def conversation(self, turns: Sequence[Turn], model: str) -> Conversation:
        """Builds a conversation in a model's prompt format, which ends with a place for the answer."""

    def explain(self, query: Query, answer: str) -> Explanation:
        """Computes what an answer to a query depended on; runs the model."""

    def ask(self, query: Query) -> AsyncGenerator[AnswerPiece, None]:
        """Yields the answer in pieces, the first once the request is accepted. Closing the iterator stops the model."""


class EngineBackend:
    """A model in this process."""

    note = ""
    explains = True

    def __init__(self, engine: ChatEngine, name: str = "") -> None:
        """
        Args:
            engine: The model.
            name: The model's name in the log of feedback.
        """
        self.engine = engine
        self.name = name
        tower: VisionTower = engine.vision.tower
        quadtree = engine.vision.quadtree_tower
        self.defaults = None if quadtree is None else quadtree.settings
        self.quadtree = quadtree is not None and engine.vision.quadtree
        self.native_tokens = tower.num_patches
        room = max(engine.context_len // 2, engine.context_len - TEXT_TOKENS)
        self.max_tokens = min(room, engine.limits.max_image_tokens)
        self.pixels = pixels_of(tower.native_processor, tower.config.patch_size)

    async def models(self) -> list[str]:
        """Lists no models, since the engine has only one."""
        return []

    def prepare(self, picture: Image.Image, options: QLIPOptions) -> PreparedImage:
        """See `Backend`."""
        return self.engine.vision.prepare(picture, self.engine.vision.settings(options))

    async def conversation(self, turns: Sequence[Turn], model: str) -> Conversation:
        """See `Backend`."""
        return build_conversation(self.engine, turns)[0]

    def explain(self, query: Query, answer: str) -> Explanation:
        """See `Backend`; errors are the engine's."""
        conversation, _ = build_conversation(self.engine, query.turns)
        pictures = [picture for turn in query.turns for picture in turn.images if isinstance(picture, Image.Image)]
        return self.engine.explain(conversation, pictures, answer, qlip=query.qlip)

    async def ask(self, query: Query) -> AsyncGenerator[AnswerPiece, None]:
        """See `Backend`; errors are the engine's."""
        conversation, images = build_conversation(self.engine, query.turns)
        answer = await self.engine.asubmit(conversation, images, query.sampling, query.qlip, shorten=True)
        try:
            yield AnswerPiece(visual_tokens=answer.usage.visual_tokens)
            async for text in answer:  # a question has decided on the tokens
                usage = answer.usage
                first_pass = FirstPass.of(usage.first_pass_tokens, usage.first_pass_seconds)
                yield AnswerPiece(text, usage.visual_tokens, first_pass)
            yield AnswerPiece(finish_reason=answer.finish_reason)
        finally:
            answer.cancel()


def pixels_of(processor: object, patch_size: int) -> Pixels:
    """Reads from an image processor how to invert its normalisation."""
    mean, std = (torch.tensor(getattr(processor, name))[:, None, None] for name in ("image_mean", "image_std"))
    return Pixels(patch_size, mean, std)
