"""Requests from event loops: several at a time, cancelled, refused."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from PIL import Image

from llava.images import ImageError
from llava.serve.engine.answer_stream import AnswerStream
from llava.serve.engine.errors import OverloadedError
from tests.llava.serve.engine.engines import FIRST_ANSWER, GREEDY, Hold, NewEngine, submit
from tests.llava.serve.openai.serving import DEADLINE, QUESTION


def test_coroutines_read_side_by_side(new_engine: NewEngine, pictures: list[Image.Image]) -> None:
    engine = new_engine()

    async def read(picture: Image.Image) -> str:
        answer = await engine.asubmit(engine.question(QUESTION, 1), [picture], GREEDY)
        return "".join([piece async for piece in answer])

    async def all_together() -> list[str]:
        return await asyncio.wait_for(asyncio.gather(*map(read, pictures)), DEADLINE)

    assert asyncio.run(all_together()) == ["".join(submit(engine, picture)) for picture in pictures]


def test_a_reader_whose_loop_is_gone_does_not_stop_the_model(
    new_engine: NewEngine, hold: Hold, pictures: list[Image.Image]
) -> None:
    engine = new_engine()
    gate, first = hold(engine)

    async def look_once() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(aiter(first)), 0.01)

    asyncio.run(look_once())
    gate.opened.set()
    assert "".join(submit(engine, pictures[0])) == "".join(first) != ""


def test_a_coroutine_cancelled_while_its_pictures_are_prepared_leaves_no_request(
    new_engine: NewEngine, hold: Hold, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    gate, first = hold(engine)
    preparing, go_on = threading.Event(), threading.Event()
    prepare = engine._prepare

    def slowly(*request: Any) -> AnswerStream:
        preparing.set()
        assert go_on.wait(DEADLINE)
        return prepare(*request)

    monkeypatch.setattr(engine, "_prepare", slowly)

    async def leave() -> None:
        waiting = asyncio.create_task(engine.asubmit(engine.question("What?", 1), [pictures[1]], GREEDY))
        assert await asyncio.to_thread(preparing.wait, DEADLINE)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go_on.set()

    asyncio.run(leave())
    engine._preparers.shutdown(wait=True)
    assert engine.waiting == 0
    gate.opened.set()
    assert "".join(first)
    assert gate.batches == [1]


def test_a_full_queue_refuses_before_any_picture_is_opened(
    new_engine: NewEngine, hold: Hold, pictures: list[Image.Image]
) -> None:
    engine = new_engine(max_waiting=1)
    gate, first = hold(engine)
    second = submit(engine, pictures[0])

    def open_picture() -> Image.Image:
        raise AssertionError("opened")

    async def ask() -> None:
        await engine.asubmit(engine.question("What?", 1), [open_picture], GREEDY)

    with pytest.raises(OverloadedError):
        asyncio.run(ask())
    gate.opened.set()
    assert "".join(first) == "".join(second)


def test_a_coroutine_cancelled_before_its_turn_to_prepare_gives_its_place_back(
    new_engine: NewEngine, pictures: list[Image.Image]
) -> None:
    engine = new_engine(max_preparing=1)
    opening, go_on = threading.Event(), threading.Event()

    def open_slowly() -> Image.Image:
        opening.set()
        assert go_on.wait(DEADLINE)
        return pictures[0]

    async def leave() -> str:
        question = engine.question(QUESTION, 1)
        first = asyncio.create_task(engine.asubmit(question, [open_slowly], GREEDY))
        assert await asyncio.to_thread(opening.wait, DEADLINE)
        second = asyncio.create_task(engine.asubmit(question, pictures[:1], GREEDY))
        await asyncio.sleep(0)  # lets it take its place
        assert engine.waiting == 2
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert engine.waiting == 1
        go_on.set()
        return "".join([piece async for piece in await first])

    assert asyncio.run(leave()) == FIRST_ANSWER


def test_a_picture_that_cannot_be_opened_refuses_the_request_and_gives_its_place_back(
    new_engine: NewEngine,
) -> None:
    engine = new_engine()

    def fail() -> Image.Image:
        raise ImageError("no picture")

    with pytest.raises(ImageError, match="no picture"):
        engine.submit(engine.question("What?", 1), [fail], GREEDY)
    assert engine.waiting == 0
