"""Encodes the images of some requests; where the questions decide what is split, they are asked first."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from operator import attrgetter

import torch

from llava.model.vision.image_tokens import ImageTokens
from llava.model.vision.prepared_image import PreparedImage
from llava.model.vision.question_budget import awaits_question, refine_images
from llava.serve.engine.answer_stream import AnswerStream
from llava.serve.engine.streams import run_to_end
from llava.serve.engine.vision import VisionFrontend


def encode_answers(vision: VisionFrontend, batch: Sequence[AnswerStream], most_asked: int) -> list[ImageTokens] | None:
    """Encodes the images of all requests at once; see `encode_in_parts`."""
    return run_to_end(encode_in_parts(vision, batch, most_asked=most_asked))


def encode_in_parts(
    vision: VisionFrontend,
    batch: Sequence[AnswerStream],
    most_tokens: float = math.inf,
    known: Sequence[int] | None = None,
    most_asked: float | None = None,
) -> Generator[None, None, list[ImageTokens] | None]:
    """Encodes the images of all requests, in their order, and records the time and tokens that it takes.

    It yields after questions were asked, and between images that exceed `most_tokens` together.

    Args:
        vision: Encodes the images.
        batch: The requests.
        most_tokens: Most tokens of images that are encoded together.
        known: How many of each request's first images are left out.
        most_asked: Tokens of prompts whose questions are asked together, padding included, and of their images that
            are encoded together; by default `most_tokens`. A single prompt or image may have more.

    Returns:
        Projected tokens; None if every request was cancelled while the questions were asked.
    """
    start = time.perf_counter()
    views = yield from ask_in_parts(vision, batch, most_tokens if most_asked is None else most_asked)
    asked = time.perf_counter()
    if all(answer.row.finished() for answer in batch):
        return None
    images: list[ImageTokens] = []
    starts = [0] * len(batch) if known is None else known
    new = [view for own, start in zip(views, starts, strict=True) for view in own[start:]]
    for part in _parts(new, most_tokens):
        if images:
            yield
        with torch.inference_mode():
            images += vision.encode(part)
    encoded = time.perf_counter()
    for answer, own in zip(batch, views, strict=True):
        if awaits_question(answer.views):
            answer.replace_images(own)
        answer.note_start(start, asked, encoded)
    return images


def ask_in_parts(
    vision: VisionFrontend, batch: Sequence[AnswerStream], most_tokens: float
) -> Generator[None, None, list[Sequence[PreparedImage]]]:
    """Splits what questions attend to in the images of requests whose questions decide; see `encode_in_parts`.

    Returns:
        The images of each request; those that await no question are returned as they are.
    """
    views: list[Sequence[PreparedImage]] = [answer.views for answer in batch]
    asking = [i for i, own in enumerate(views) if awaits_question(own)]
    lengths = [batch[i].usage.text_tokens + sum(map(_first_tokens, views[i])) for i in asking]
    for places in _group(lengths, most_tokens):
        part = [asking[place] for place in places]
        shown: list[ImageTokens] = []
        for images in _parts([image for i in part for image in views[i]], most_tokens, _first_tokens):
            if shown:
                yield
            with torch.inference_mode():
                shown += vision.encode(images)
        rows, own = [batch[i].row for i in part], [views[i] for i in part]
        left = iter(shown)
        seen = [[next(left) for _ in images] for images in own]
        prompts, questions = [row.prompt for row in rows], [row.question for row in rows]
        for i, refined in zip(part, refine_images(vision.model, prompts, questions, own, seen), strict=True):
            views[i] = refined
        yield
    return views


def _first_tokens(image: PreparedImage) -> int:
    """Counts an image's tokens as a question is asked, also about images in which it decides nothing."""
    return image.tokens if image.question is None else image.first_tokens


def _group(lengths: Sequence[int], most_tokens: float) -> Iterator[list[int]]:
    """Splits prompts, in order, into groups of at most `most_tokens` once padded, or of one prompt."""
    group: list[int] = []
    for place, length in enumerate(lengths):
        longest = max([length, *(lengths[other] for other in group)])
        if group and longest * (len(group) + 1) > most_tokens:
            yield group
            group = []
        group.append(place)
    if group:
        yield group


def _parts(
    images: Sequence[PreparedImage],
    most_tokens: float,
    count: Callable[[PreparedImage], int] = attrgetter("tokens"),
) -> Iterator[list[PreparedImage]]:
    """Splits images, in order, into lists of at most `most_tokens`, or of one image; no images are one empty list."""
    part: list[PreparedImage] = []
    for image in images:
        if part and sum(map(count, [*part, image])) > most_tokens:
            yield part
            part = []
        part.append(image)
    yield part
