"""What an answer depended on: the share of each leaf of its images, or of each cell of CLIP's grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from llava.conversation import Conversation
from llava.image_geometry import find_padding
from llava.mm_utils import tokenizer_image_token
from llava.model.attribution import DEFAULT_METHOD, Method, attribute_answer
from llava.model.vision.prepared_image import PreparedImage
from llava.model.vision.question_budget import refine_images
from llava.serve.engine.answer_stream import AnswerStream
from llava.serve.engine.params import SERVER_DEFAULTS, Sampling
from llava.serve.engine.prefixes import count_shared
from llava.serve.engine.prompting import PromptFormat, find_question_token
from llava.serve.engine.scheduler import Scheduler
from llava.serve.engine.vision import Picture, RequestSettings, VisionFrontend
from llava.text import check_question
from qlip import Leaves, draw_weights
from qlip.images.rgb import to_rgb
from qlip.patches import CutImage
from qlip.tools.heat import FULL_FRAME, Frame


class Engine(PromptFormat, Protocol):
    """The part of `ChatEngine` that explaining an answer needs."""

    tokenizer: Any
    model: Any
    image_processor: Any
    vision: VisionFrontend
    scheduler: Scheduler

    def question(self, text: str, num_images: int) -> Conversation:
        """Creates a conversation with one question about images."""

    def submit(
        self, prompt: str | Conversation, images: Sequence[Picture], sampling: Sampling, qlip: RequestSettings
    ) -> AnswerStream:
        """Queues a request."""

    def check_length(self, text: int, visual: int, answer: int) -> None:
        """Raises PromptTooLongError unless all tokens fit the context."""


@dataclass(frozen=True, eq=False)
class ImageAttribution:
    """The share that each leaf of one image has in an answer."""

    leaves: Leaves
    """Leaves of the quadtree; without one, the cells of CLIP's grid."""
    weights: Tensor
    """float32 (N,): not negative; of all images of a prompt they sum to 1."""
    frame: Frame = FULL_FRAME
    """Where the leaves' grid lies, in shares of the picture's width and height; padding is outside of 0 to 1."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """An answer, and what it depended on."""

    answer: str
    images: tuple[ImageAttribution, ...]
    """The images' attributions, in the order of the prompt."""

    def draw(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """Draws each picture with the heat of its leaves, on one scale; see `qlip.draw_weights`.

        Raises:
            ValueError: there are more or fewer pictures than images.
        """
        if len(pictures) != len(self.images):
            raise ValueError(f"{len(pictures)} pictures are given; the answer is about {len(self.images)}")
        top = max(float(part.weights.max()) for part in self.images)
        pairs = zip(pictures, self.images, strict=True)
        return [draw_weights(picture, part.leaves, part.weights, part.frame, top) for picture, part in pairs]


def explain_answer(
    engine: Engine,
    question: str | Conversation,
    images: Sequence[Image.Image],
    answer: str | None = None,
    sampling: Sampling | None = None,
    qlip: RequestSettings = SERVER_DEFAULTS,
    method: Method = DEFAULT_METHOD,
) -> Explanation:
    """Computes what an answer depended on, in the engine's model thread, between the tokens of answers that run.

    Args:
        engine: A model with a vision tower.
        question: A question about all images, or a conversation that waits for its answer.
        images: RGB images, at least one.
        answer: The answer to explain; None generates it.
        sampling: How the answer is generated; greedily by default.
        qlip: QLIP options, see `ChatEngine.submit`.
        method: See `llava.model.attribution.Method`.

    Raises:
        ValueError: there is no image, the answer is empty or already in the conversation, or the model's tokens have
            no place in the picture (tiles that are not joined to a raster).
        PromptTooLongError, OverloadedError, EngineClosedError: see `ChatEngine.submit`.
    """
    if not images:
        raise ValueError("there is no image that the answer could depend on; give at least one")
    if isinstance(question, str):
        check_question(question)
    asked = engine.question(question, len(images)) if isinstance(question, str) else question.copy()
    if not asked.messages or asked.messages[-1][1] is not None:
        raise ValueError("the conversation does not wait for an answer; leave its last message None")
    settings = engine.vision.settings(qlip)
    images = [to_rgb(image) for image in images]  # frames are measured on them
    if answer is None:
        stream = engine.submit(asked, images, sampling or Sampling(temperature=0.0), settings)
        answer, views = "".join(stream).strip(), list(stream.views)
    else:
        views = [engine.vision.prepare(image, settings) for image in images]
    prompt, said = tokenize_answer(engine, asked, answer)
    engine.check_length(len(prompt) - len(views), sum(view.context for view in views), len(said))
    start = find_question_token(asked.get_prompt(), asked, engine.tokenizer, len(prompt))

    def attribute() -> tuple[list[PreparedImage], list[Tensor]]:
        with torch.inference_mode():
            (shown,) = refine_images(engine.model, [prompt], [start], [views])
            tokens = engine.vision.encode(shown)
        return shown, attribute_answer(engine.model, prompt, said, tokens, method)

    shown, weights = engine.scheduler.call(attribute)
    parts = [_place(engine, *row) for row in zip(shown, weights, images, strict=True)]
    total = sum(float(part.weights.sum()) for part in parts) or 1.0
    return Explanation(answer, tuple(ImageAttribution(p.leaves, p.weights / total, p.frame) for p in parts))


def tokenize_answer(engine: Engine, asked: Conversation, answer: str) -> tuple[Tensor, Tensor]:
    """Tokenizes a conversation and its answer, whose end is left out.

    Args:
        engine: Has the tokenizer.
        asked: The conversation, which waits for the answer.
        answer: Its text.

    Returns:
        The prompt's ids, int64 (L,), IMAGE_TOKEN_INDEX where an image goes, and the answer's, int64 (A,).

    Raises:
        TypeError: the answer is no text.
        ValueError: it is empty.
    """
    if not isinstance(answer, str):
        raise TypeError(f"answer is {answer!r}; it must be text")
    if not answer.strip():
        raise ValueError("the answer is empty; there is nothing to explain")
    prompt, answered = asked.get_prompt(), asked.copy()
    answered.messages[-1][1] = answer
    whole = answered.get_prompt()
    start = whole.find(answer, count_shared(prompt, whole))
    ids = tokenizer_image_token(whole[: start + len(answer)], engine.tokenizer)
    own = tokenizer_image_token(prompt, engine.tokenizer)
    known = min(count_shared(own, ids), len(ids) - 1)
    return torch.tensor(ids[:known]), torch.tensor(ids[known:])


def _place(engine: Engine, view: PreparedImage, weights: Tensor, image: Image.Image) -> ImageAttribution:
    """Finds the leaves of an image's tokens, and spreads over them what its base or thumbnail weighs.

    Raises:
        ValueError: the tokens have no place in the picture.
    """
    leaves, base, newline, frame = _find_leaves(engine, view, len(weights), image.size)
    own = weights if newline is None else weights[~newline]
    if len(own) != base + len(leaves):
        raise ValueError(
            f"the model's {len(weights)} visual tokens are neither one grid nor a raster of tiles, so they have no"
            " place in the picture; explain works with 'patch' features, and with tiles that are joined"
        )
    shares = own[base:]
    if base:
        n = engine.vision.tower.num_patches_per_side
        shares = shares + _spread(own[:base].view(n, n), leaves)
    return ImageAttribution(leaves, shares, frame)


def _find_leaves(
    engine: Engine, view: PreparedImage, tokens: int, size: tuple[int, int]
) -> tuple[Leaves, int, Tensor | None, Frame]:
    """Finds what an image's tokens show.

    Args:
        engine: has the tower.
        view: the image.
        tokens: the image's tokens.
        size: (width, height) of the picture.

    Returns:
        The leaves that the last tokens show; how many tokens of a base or thumbnail come before; which of all tokens
        are newlines and have no place, bool (tokens,), None without any; and where the leaves' grid lies.
    """
    n = engine.vision.tower.num_patches_per_side
    if view.order is not None:
        newline = view.order.order == view.order.order.max()
        return view.order.leaves, tokens - len(view.order.leaves) - int(newline.sum()), newline, FULL_FRAME
    if isinstance(view.image, CutImage):
        return view.image.leaves, tokens - len(view.image.leaves), None, FULL_FRAME
    if view.tiles is None:
        patch = engine.vision.tower.config.patch_size
        grid = (n, n) if tokens == n * n else (view.size[0] // patch, view.size[1] // patch)  # else it is not square
        return Leaves.uniform(grid), 0, None, _clip_frame(engine, size)
    if not view.tiles.rows:  # its base alone
        return Leaves.uniform((n, n)), 0, torch.arange(tokens) >= n * n, FULL_FRAME
    rows, cols = view.tiles.find_shape(n)
    leaves = Leaves.uniform((rows, cols))
    if view.tiles.unpad:
        newline = torch.zeros(tokens, dtype=torch.bool)
        newline[n * n :].view(rows, cols + 1)[:, cols] = True
        return leaves, n * n, newline, FULL_FRAME
    frame = FULL_FRAME if view.tiles.original is None else _padded_frame(view.tiles.original, (cols, rows))
    return leaves, n * n, None, frame


def _spread(weights: Tensor, leaves: Leaves) -> Tensor:
    """Spreads weights (n, n) of cells over the whole picture over leaves, by the area that they share: (N,)."""
    overlaps = []
    for axis, cells in enumerate(leaves.grid):
        begin = leaves.boxes[:, axis].clamp(0, cells) / cells * len(weights)
        end = (leaves.boxes[:, axis] + leaves.sizes).clamp(0, cells) / cells * len(weights)
        cell = torch.arange(len(weights))
        shared = torch.minimum(end[:, None], cell + 1.0) - torch.maximum(begin[:, None], cell)
        overlaps.append(shared.clamp(min=0))
    return torch.einsum("ni,nj,ij->n", *overlaps, weights)


def _clip_frame(engine: Engine, size: tuple[int, int]) -> Frame:
    """Finds where CLIP's square lies in a picture of (width, height): around it, squeezed, or in its middle."""
    quadtree = engine.vision.quadtree_tower
    processor = engine.image_processor if quadtree is None else quadtree.native_processor
    width, height = size
    if engine.model.config.image_aspect_ratio == "pad":
        side = max(size)
    elif getattr(processor, "do_center_crop", False):
        side = min(size)
    else:
        return FULL_FRAME
    left, top = (width - side) / 2 / width, (height - side) / 2 / height
    return (left, top, 1 - left, 1 - top)


def _padded_frame(size: tuple[int, int], grid: tuple[int, int]) -> Frame:
    """Finds where a grid of (cols, rows) lies that a picture of (width, height) was fitted into, with padding."""
    side, above = find_padding(grid, size)
    left, top = side / (grid[0] - 2 * side), above / (grid[1] - 2 * above)
    return (-left, -top, 1 + left, 1 + top)
