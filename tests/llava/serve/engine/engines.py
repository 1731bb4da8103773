"""Helpers for tests of the engine: requests to it, and types of the fixtures in conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image

from llava.serve.engine import ChatEngine
from llava.serve.engine.answer_stream import AnswerStream
from llava.serve.engine.params import Sampling
from tests.llava.serve.openai.serving import QUESTION, Gate

GREEDY = Sampling(temperature=0, max_new_tokens=12)  # enough for the first answer and its end
FIRST_ANSWER = "a purple ring, a cyan triangle and a blue square"  # to QUESTION about the demo's first picture

NewEngine = Callable[..., ChatEngine]
Hold = Callable[[ChatEngine], tuple[Gate, AnswerStream]]
Passes = list[tuple[int, int]]
NotePasses = Callable[..., Passes]


def submit(engine: ChatEngine, picture: Image.Image, question: str = QUESTION, **options: Any) -> AnswerStream:
    """Submits a question about a picture, greedily by default."""
    options = {"sampling": GREEDY, **options}
    return engine.submit(engine.question(question, 1), [picture], **options)
