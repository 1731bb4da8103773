"""Gradio clients of the web demo's page, for tests."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from llava.images import load_image
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import QLIPOptions, Sampling
from llava.serve.web.controls import QLIP
from llava.serve.web.session import WAITING
from llava.utils import demo_picture_paths
from tests.llava.serve.openai.serving import QUESTION

NewVisitor = Callable[..., Client]

ALPHA, BUDGET = 0.8, 96
FIRST, SECOND = str(demo_picture_paths()[0]), str(demo_picture_paths()[1])


def controls(mode: str = QLIP, alpha: float = ALPHA, budget: int = BUDGET, length: int = 64) -> tuple[Any, ...]:
    """Values of the page's controls, for greedy answers."""
    return mode, alpha, budget, 0, 1, length, None


def show(visitor: Client, path: str) -> tuple[Any, ...]:
    """Opens a picture."""
    return visitor.predict(handle_file(path), *controls(), api_name="/open_picture")


def steps(visitor: Client, name: str, *inputs: Any) -> list[Any]:
    """All outputs of an event, in order."""
    job = visitor.submit(*inputs, api_name=name)
    job.result()
    return job.outputs()


def ask(visitor: Client, question: str = QUESTION, *said: Any) -> list[list[tuple[str, str]]]:
    """The conversation after each step of the answer, as (role, text)."""
    return [talk_of(chat) for chat, *_ in steps(visitor, "/ask", question, *(said or controls()))]


def talk_of(chat: Sequence[Any]) -> list[tuple[str, str]]:
    """A chat as (role, text), without the mark of an answer that has not come yet."""
    said = [(entry["role"], "".join(part["text"] for part in entry["content"])) for entry in chat]
    return [(role, text) for role, text in said if text != f'<span class="mark alone">{WAITING}</span>']


def alone(engine: ChatEngine, path: str, question: str = QUESTION, **options: Any) -> str:
    """The engine's own greedy answer to one question about one picture."""
    options = options or {"alpha": ALPHA, "max_tokens": BUDGET}
    sampling = Sampling(temperature=0, max_new_tokens=64)
    answer = engine.submit(engine.question(question, 1), [load_image(path)], sampling, QLIPOptions(**options))
    return "".join(answer).strip()


def count(html: str) -> int:
    """The first number of visual tokens in a piece of HTML."""
    return int(re.search(r"<strong>([\d,]+)</strong> visual", html)[1].replace(",", ""))


def request(visitor: str) -> gr.Request:
    """The request of a visitor, for calling handlers directly."""
    return SimpleNamespace(session_hash=visitor)  # type: ignore[return-value]


def refused(visitor: Client, name: str, *inputs: Any) -> str:
    """The error of an event that fails."""
    with pytest.raises(AppError) as caught:
        visitor.predict(*inputs, api_name=name)
    return str(caught.value)
