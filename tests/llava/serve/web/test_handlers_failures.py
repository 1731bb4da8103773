"""What a visitor is told when a request fails or is stopped."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

import gradio as gr
import pytest

from llava.serve.engine import ChatEngine
from llava.serve.http.failures import RequestError
from llava.serve.web.backend import AnswerPiece, EngineBackend, Query
from llava.serve.web.controls import QLIP
from llava.serve.web.handlers import Demo
from llava.serve.web.moderation import Moderator
from llava.serve.web.runs import COMPARISON, Run
from llava.serve.web.session import BROKEN_OFF, CUT, STOPPED, WAITING, Session
from tests.llava.serve.openai.serving import Gate, becomes_idle, picture, reaches
from tests.llava.serve.web.clients import (
    FIRST,
    QUESTION,
    NewVisitor,
    alone,
    controls,
    refused,
    request,
)


def test_a_visitor_who_leaves_before_the_first_word_is_waited_for_no_longer(demo: Demo, engine: ChatEngine) -> None:
    async def leave() -> None:
        async def read(visitor: str) -> list[Any]:
            return [step async for step in demo.ask(request(visitor), Session(picture()), None, QUESTION, *controls())]

        with Gate(engine) as gate:
            stays = asyncio.create_task(read("stays"))
            assert await asyncio.to_thread(gate.await_submitted, 1)
            leaves = asyncio.create_task(read("leaves"))
            assert await asyncio.to_thread(gate.await_submitted, 2)
            await demo.leave(request("leaves"))
            accepted, stopped = await leaves
            assert [step[0].exchanges[-1].texts() for step in (accepted, stopped)] == [(QUESTION, "")] * 2
            assert [step[0].exchanges[-1].mark for step in (accepted, stopped)] == [WAITING, STOPPED]
            assert await asyncio.to_thread(reaches, engine, lambda: engine.waiting == 0)
            gate.opened.set()
            (*_, (session, *_)) = await stays
        assert session.exchanges[-1].answer == alone(engine, FIRST)

    asyncio.run(leave())
    assert becomes_idle(engine)
    assert len(demo.runs) == 0


def test_a_closed_answer_makes_the_model_stop(demo: Demo, engine: ChatEngine) -> None:
    async def look_away() -> None:
        answers = demo.ask(request("a"), Session(picture()), None, QUESTION, *controls(length=1000))
        async for session, *_ in answers:
            if session.exchanges[-1].answer:
                break
        await answers.aclose()

    asyncio.run(look_away())
    assert becomes_idle(engine)
    assert len(demo.runs) == 0


@pytest.mark.parametrize(
    ("name", "inputs", "told"),
    [
        ("/ask", ("What?", *controls()), "There is no picture yet. Choose one, then ask."),
        ("/compare", ("What?", *controls()), "There is no picture yet. Choose one, then ask."),
        ("/regenerate", controls(), "There is no answer to regenerate. Ask something first."),
    ],
)
def test_without_a_picture_the_page_says_what_to_do(new_visitor: NewVisitor, name: str, inputs: Any, told: str) -> None:
    assert told in refused(new_visitor(None), name, *inputs)


@pytest.mark.parametrize(
    ("question", "said", "told"),
    [
        ("  ", controls(), "The question is empty. Type one, then press Ask."),
        ("What is <image>?", controls(), "it marks where a picture is"),
        ("long " * 700, controls(), "Shorten the question, lower the token budget, or clear the chat."),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_with_a_way_out(
    new_visitor: NewVisitor, question: str, said: Any, told: str
) -> None:
    assert told in refused(new_visitor(), "/ask", question, *said)


def test_controls_beyond_their_range_are_refused(demo: Demo) -> None:
    async def ask_with(*said: Any) -> None:
        async for _ in demo.ask(request("a"), Session(picture()), None, QUESTION, *said):
            pass

    for said, told in [
        ((QLIP, -1, 96, 0, 1, 8, None), "Split threshold is -1; it must be a number from 0 to 3"),
        ((QLIP, 1, 10**6, 0, 1, 8, None), "Token budget is 1000000; it must be a whole number from 1 to 1920"),
        ((QLIP, 1, 96, -1, 1, 8, None), "Temperature is -1; it must be a number from 0 to 2"),
        ((QLIP, 1, 96, 0, 1, 0, None), "Longest answer, in tokens is 0; it must be a whole number from 1 to 1024"),
    ]:
        with pytest.raises(gr.Error, match=re.escape(told)):
            asyncio.run(ask_with(*said))


def test_a_failure_of_the_model_is_told_without_its_cause(
    demo: Demo, engine: ChatEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a secret path")

    async def fails() -> None:
        async for _ in demo.ask(request("a"), Session(picture()), None, QUESTION, *controls()):
            pass

    monkeypatch.setattr(engine, "_generate", fail)
    with pytest.raises(gr.Error, match="The model failed") as caught:
        asyncio.run(fails())
    assert "secret" not in str(caught.value) and "RuntimeError" not in str(caught.value)
    assert not caught.value.print_exception


def test_a_comparison_that_ends_early_does_not_seem_to_wait(
    engine: ChatEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = Demo(EngineBackend(engine))

    async def last_step(stops: bool) -> tuple[Any, ...]:
        seen = []
        with suppress(gr.Error):
            async for step in demo.compare(request("a"), Session(picture()), None, "What?", *controls()):
                seen.append(step)
                if stops:
                    demo.runs._runs["a", COMPARISON].stop()
        return seen[-1]

    for side in asyncio.run(last_step(stops=True))[3::2]:
        assert "stopped" in side and "waiting" not in side and "&hellip;" not in side
    monkeypatch.setattr(engine, "asubmit", fail)
    for side in asyncio.run(last_step(stops=False))[3::2]:
        assert "failed" in side and "waiting" not in side and "&hellip;" not in side


def test_each_side_of_a_comparison_has_its_own_mark(engine: ChatEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = Demo(EngineBackend(engine))

    async def compare(ends: Callable[[Run], None]) -> tuple[str, str]:
        """The two sides after a run that `ends` ends in the middle of the second answer."""
        steps = [(None, *[""] * 5)]
        with suppress(gr.Error):
            async for step in demo.compare(request("a"), Session(picture()), None, "What?", *controls(length=2)):
                steps.append(step)
                if ">a ring" in step[5]:
                    ends(demo.runs._runs["a", COMPARISON])
        return steps[-1][3], steps[-1][5]

    for side in asyncio.run(compare(lambda run: None)):
        assert f'<span class="mark">{CUT}</span>' in side
    for ends, mark in ((Run.stop, STOPPED), (lambda run: None, BROKEN_OFF)):
        monkeypatch.setattr(demo.backend, "ask", fail_every_second())
        left, right = asyncio.run(compare(ends))
        assert "mark" not in left and f'>a ring <span class="mark">{mark}</span><' in right


def fail_every_second() -> Callable[[Query], AsyncGenerator[AnswerPiece, None]]:
    """A backend's `ask` of which every second answer fails after its first text."""
    count = itertools.count()

    async def ask(_: Query) -> AsyncGenerator[AnswerPiece, None]:
        yield AnswerPiece("a ring")
        if next(count) % 2:
            raise RuntimeError("the model is broken")

    return ask


async def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("the model is broken")


def test_what_moderation_refuses_is_not_asked(engine: ChatEngine) -> None:
    class Strict(Moderator):
        async def check(self, text: str) -> None:
            raise RequestError(400, "flagged", f"no {text}")

    demo = Demo(EngineBackend(engine), Strict("key"))

    async def steps_of(event: Callable[..., Any]) -> list[Any]:
        return [step async for step in event(request("a"), Session(picture()), None, "shouting", *controls())]

    with Gate(engine) as gate:
        for event in (demo.ask, demo.compare):
            with pytest.raises(gr.Error, match="No shouting. Ask something else."):
                asyncio.run(steps_of(event))
        assert gate.submitted == 0
