"""Encodes the images of a batch of requests; where the questions decide what is split, they are asked first."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from llava.model.image_tokens import ImageTokens
from llava.model.question_budget import awaits_question, refine_images
from llava.serve.engine.answer_stream import Answer
from llava.serve.engine.vision import VisionFrontend


def encode_answers(vision: VisionFrontend, batch: Sequence[Answer]) -> list[ImageTokens] | None:
    """Encodes the images of all requests, in their order, and records the time and tokens that it takes.

    Returns:
        Projected tokens; None if every request was cancelled while the questions were asked.
    """
    start = time.perf_counter()
    rows = [answer.row for answer in batch]
    prompts, questions = [row.prompt for row in rows], [row.question for row in rows]
    views = refine_images(vision.model, prompts, questions, [answer.views for answer in batch])
    asked = time.perf_counter()
    if any(awaits_question(answer.views) for answer in batch) and all(row.finished() for row in rows):
        return None
    with torch.inference_mode():
        images = vision.encode([view for own in views for view in own])
    encoded = time.perf_counter()
    for answer, own in zip(batch, views, strict=True):
        if awaits_question(answer.views):
            answer.show(own)
        answer.note_start(start, asked, encoded)
    return images
