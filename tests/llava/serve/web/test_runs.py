"""The last press counts: answers and comparisons that others end, in Chromium, and what they leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator

import pytest
from playwright.sync_api import expect

from llava.serve.engine import ChatEngine
from llava.serve.web.backend import EngineBackend
from llava.serve.web.handlers import Demo
from llava.serve.web.page import PageText
from llava.serve.web.runs import COMPARISON, TALK, Runs
from llava.serve.web.session import Session
from llava.utils import demo_picture_paths
from tests.llava.serve.openai.serving import QUESTION, Talker, becomes_idle
from tests.llava.serve.web.pages import Visitor, needs_chromium, page_of


@pytest.fixture(scope="module")
def url(engine: ChatEngine) -> Iterator[str]:
    text = PageText("A notice.", [str(path) for path in demo_picture_paths()], [QUESTION])
    with page_of(Demo(EngineBackend(engine)), text) as url:
        yield url


@pytest.fixture
def talker(engine: ChatEngine) -> Iterator[Talker]:
    """A model that says "a purple ring" and then nothing more until it is stopped."""
    yield Talker(engine, "a purple ring")
    del engine._generate


def test_a_run_whose_press_has_been_overtaken_ends_before_its_first_step() -> None:
    runs, taken = Runs(), dict[int | None, list[int]]()

    async def run(press: int | None, kind: str = TALK) -> None:
        async with runs.start("a", kind, press) as run:
            taken[press] = [number async for number in run.until_stopped(count(3))]

    async def run_all() -> None:
        await run(2)
        await run(1)  # pressed before, and started after it
        assert taken.pop(1) == []
        await runs.stop("a", press=4)
        await run(3)
        await run(3, COMPARISON)
        await run(None)  # a program's
        await run(5)
        await runs.forget("a")
        await run(1, COMPARISON)  # of a page that was loaded again

    asyncio.run(run_all())
    assert taken == {2: [1, 2, 3], 3: [], None: [1, 2, 3], 5: [1, 2, 3], 1: [1, 2, 3]}
    assert len(runs) == 0


def test_a_run_that_waits_for_the_one_before_is_overtaken_by_a_stop_meanwhile() -> None:
    async def run_all() -> bool:
        runs = Runs()
        async with runs.start("a", TALK, 1) as first:
            second = asyncio.create_task(begin(runs, 2))
            while not first.is_stopped:
                await asyncio.sleep(0)
            stop = asyncio.create_task(runs.stop("a", press=3))
            await asyncio.sleep(0)
        await stop
        return await second

    async def begin(runs: Runs, press: int) -> bool:
        async with runs.start("a", TALK, press) as run:
            return run.is_stopped

    assert asyncio.run(run_all())


async def count(until: int) -> AsyncGenerator[int, None]:
    for number in range(1, until + 1):
        await asyncio.sleep(0)
        yield number


def test_a_run_ends_the_one_before_and_takes_over_its_session() -> None:
    runs, taken = Runs(), dict[str, list[int]]()

    async def run(name: str, until: int) -> None:
        async with runs.start("a", TALK) as run:
            taken[name] = [len(run.session.exchanges) if run.session else 0]
            async for number in run.until_stopped(count(until)):
                taken[name].append(number)
                run.session = (run.session or Session()).with_answer(name, str(number))

    async def run_all() -> None:
        first = asyncio.create_task(run("first", 10**9))
        while len(taken.get("first", ())) < 3:
            await asyncio.sleep(0)
        await asyncio.gather(run("second", 10**9), run("third", 5), first)
        assert await runs.stop("a") is None

    asyncio.run(run_all())
    assert len(runs) == 0
    assert taken["third"] == [len(taken["first"]) - 1 + len(taken["second"]) - 1, 1, 2, 3, 4, 5]


def test_a_run_that_is_stopped_amid_a_step_ends_it() -> None:
    closed = []

    async def wait_for_ever() -> AsyncGenerator[int, None]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    async def stop() -> list[int]:
        runs = Runs()
        async with runs.start("a", TALK) as run:
            steps = asyncio.create_task(collect(run.until_stopped(wait_for_ever())))
            await asyncio.sleep(0)
            run.stop()
            return await steps

    async def collect(steps: AsyncGenerator[int, None]) -> list[int]:
        return [step async for step in steps]

    assert asyncio.run(stop()) in ([], [1])
    assert closed == [True]


@needs_chromium
def test_whatever_is_pressed_the_last_press_counts_and_the_buttons_fit(
    come: Callable[..., Visitor], engine: ChatEngine, talker: Talker
) -> None:
    visitor = come().sees_a_picture()
    box, stop, side = (visitor.at(name) for name in ("#question textarea", "#stop", "#side-clip .side-answer"))

    def press(*names: str) -> None:  # within the same task of the browser: no reply comes between
        visitor.page.evaluate("names => names.forEach(name => document.querySelector(name).click())", list(names))

    def is_idle(questions: list[str]) -> None:
        press("#stop")
        expect(stop).to_be_disabled()
        expect(visitor.at("#regenerate")).to_be_enabled(enabled=bool(questions))
        expect(visitor.at("#chat .user.message")).to_have_text(questions)
        assert becomes_idle(engine)

    press("#ask")
    expect(visitor.page.get_by_text("The question is empty.")).to_be_visible()
    is_idle([])
    visitor.ask("One?")
    expect(visitor.answer).to_have_text("a purple ring")
    box.fill("Two?")
    press("#clear", "#ask")
    expect(visitor.at("#chat .user.message")).to_have_text(["Two?"])
    expect(visitor.answer).to_have_text("a purple ring")
    visitor.ask("Three?")
    expect(visitor.at("#chat .bot.message")).to_have_count(2)
    is_idle(["Two?", "Three?"])
    press("#regenerate", "#regenerate")
    expect(stop).to_be_enabled()
    expect(visitor.at("#spent")).to_contain_text("to first token")
    is_idle(["Two?", "Three?"])
    box.fill("Four?")
    press("#ask", "#clear")
    is_idle([])
    for question in ("Four?", "Five?"):
        box.fill(question)
        press("#clear", "#compare")
        expect(visitor.at("#compare-question")).to_have_text(question)
        expect(side).to_have_text("a purple ring")
        is_idle([])
        expect(side).to_be_visible()
    press("#compare", "#clear")
    expect(side).to_be_hidden()
    is_idle([])
    expect(side).to_be_hidden()
    visitor.ask("Six?")
    expect(visitor.answer).to_have_text("a purple ring")
    press("#clear", "#stop")
    is_idle([])
