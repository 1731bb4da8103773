"""Fixtures for tests of the engine on the embedded model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from PIL import Image

from llava.serve.engine import ChatEngine
from llava.serve.engine.answer_stream import AnswerStream
from llava.serve.engine.params import EngineLimits
from llava.utils import demo_picture_paths
from tests.llava.serve.engine.engines import Hold, NewEngine, NotePasses, Passes, submit
from tests.llava.serve.openai.serving import DEADLINE, Gate, becomes_idle, loaded, picture


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """The embedded demo's pictures."""
    return [picture(index) for index in range(len(demo_picture_paths()))]


@pytest.fixture
def new_engine() -> Iterator[NewEngine]:
    """Makes engines on the embedded model with the given limits; closes them after the test."""
    engines: list[ChatEngine] = []

    def make(joins: bool = True, **limits: int) -> ChatEngine:
        engines.append(ChatEngine(*loaded(), limits=EngineLimits(**limits), joins=joins))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> NotePasses:
    """Notes the rows and the tokens of each pass of an engine's language model; `check` may raise first."""

    def note(engine: ChatEngine, check: Callable[[int, int], None] = lambda rows, tokens: None) -> Passes:
        noted: Passes = []
        forward = engine.model.forward

        def forward_and_note(*args: Any, **inputs: Any) -> Any:
            new = inputs["input_ids"] if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"]
            check(new.shape[0], new.shape[1])
            noted.append((new.shape[0], new.shape[1]))
            return forward(*args, **inputs)

        monkeypatch.setattr(engine.model, "forward", forward_and_note)
        return noted

    return note


@pytest.fixture
def hold(new_engine: NewEngine) -> Iterator[Hold]:
    """Blocks an engine's model with a first request, so that all later ones wait; opens its gate after the test."""
    with ExitStack() as stack:

        def block(engine: ChatEngine) -> tuple[Gate, AnswerStream]:
            assert becomes_idle(engine)  # else the first one may join the end of an earlier run, which no gate holds
            gate = stack.enter_context(Gate(engine))
            first = submit(engine, picture())
            assert gate.reached.wait(DEADLINE)
            return gate, first

        yield block
