"""Encodes the images of some requests; where the questions decide what is split, they are asked first."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence

import torch

from llava.model.image_tokens import ImageTokens
from llava.model.prepared_image import PreparedImage
from llava.model.question_budget import awaits_question, refine_images
from llava.serve.engine.answer_stream import Answer
from llava.serve.engine.vision import VisionFrontend


def encode_answers(vision: VisionFrontend, batch: Sequence[Answer]) -> list[ImageTokens] | None:
    """Encodes the images of all requests at once; see `encode_in_parts`."""
    work = encode_in_parts(vision, batch)
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def encode_in_parts(
    vision: VisionFrontend, batch: Sequence[Answer], most_tokens: float = math.inf, known: Sequence[int] | None = None
) -> Generator[None, None, list[ImageTokens] | None]:
    """Encodes the images of all requests, in their order, and records the time and tokens that it takes.

    It yields after the questions were asked, if they were, and between images that exceed `most_tokens` together.

    Args:
        vision: Encodes the images.
        batch: The requests.
        most_tokens: Of images that are encoded together.
        known: How many of each request's first images are left out.

    Returns:
        Projected tokens; None if every request was cancelled while the questions were asked.
    """
    start = time.perf_counter()
    rows = [answer.row for answer in batch]
    prompts, questions = [row.prompt for row in rows], [row.question for row in rows]
    views = refine_images(vision.model, prompts, questions, [answer.views for answer in batch])
    asked = time.perf_counter()
    if any(awaits_question(answer.views) for answer in batch):
        yield
        if all(row.finished() for row in rows):
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
            answer.show(own)
        answer.note_start(start, asked, encoded)
    return images


def _parts(images: Sequence[PreparedImage], most_tokens: float) -> Iterator[list[PreparedImage]]:
    """Splits images, in order, into lists of at most `most_tokens`, or of one image; no images are one empty list."""
    part: list[PreparedImage] = []
    for image in images:
        if part and sum(each.tokens for each in [*part, image]) > most_tokens:
            yield part
            part = []
        part.append(image)
    yield part
