"""The question box belongs to its visitor: what is typed there stays until it is asked, and what waits says so."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator

import pytest
from playwright.sync_api import expect

from llava.serve.engine import ChatEngine
from llava.serve.web.backend import AnswerPiece, EngineBackend, Query
from llava.serve.web.handlers import Demo
from llava.serve.web.page import PageText
from tests.llava.serve.openai.serving import QUESTION
from tests.llava.serve.web.clients import FIRST, SECOND
from tests.llava.serve.web.pages import Visitor, needs_chromium, page_of

pytestmark = needs_chromium


class HeldBackend(EngineBackend):
    """Accepts each question at once and answers once it is let, or fails."""

    def __init__(self, engine: ChatEngine) -> None:
        super().__init__(engine)
        self.let, self.failure = threading.Semaphore(0), ""

    async def ask(self, query: Query) -> AsyncGenerator[AnswerPiece, None]:
        yield AnswerPiece("")
        while not self.let.acquire(blocking=False):
            await asyncio.sleep(0.01)
        if self.failure:
            raise RuntimeError(self.failure)
        yield AnswerPiece("a ring")


@pytest.fixture(scope="module")
def backend(engine: ChatEngine) -> HeldBackend:
    return HeldBackend(engine)


@pytest.fixture(scope="module")
def url(backend: HeldBackend) -> Iterator[str]:
    with page_of(Demo(backend), PageText("A notice.", [FIRST, SECOND], [QUESTION]), concurrency=1) as url:
        yield url


def test_a_suggestion_leaves_a_draft_in_the_box(come: Callable[..., Visitor], backend: HeldBackend) -> None:
    visitor = come().sees_a_picture()
    box, asked = visitor.at("#question textarea"), visitor.at("#chat .user.message")
    box.fill("A draft")
    example = visitor.page.get_by_label(f"Select example 1: {QUESTION}")
    for number, suggestion in enumerate((example, visitor.at("#suggestions button")), start=1):
        suggestion.click()
        expect(asked).to_have_text([QUESTION] * number)
        backend.let.release()
        expect(visitor.answer).to_have_text("a ring")
        expect(visitor.at("#spent")).to_contain_text("in total")
        expect(box).to_have_value("A draft")


def test_a_question_that_waits_for_others_says_so_and_leaves_alone_what_is_typed_meanwhile(
    come: Callable[..., Visitor], backend: HeldBackend
) -> None:
    first, second = come().sees_a_picture(), come().sees_a_picture()
    box, waiting, asked = (second.at(name) for name in ("#question textarea", "#waiting", "#chat .user.message"))
    for question, typed in (("One?", "A draft"), ("Two?", "Two?")):
        first.ask("First?")
        expect(first.at("#waiting")).to_have_text("")
        second.ask(question)
        expect(waiting.get_by_role("status")).to_have_text("Waiting for the model…")
        box.fill(typed)
        first.at("#stop").click()
        expect(asked.last).to_have_text(question)
        expect(waiting).to_have_text("")
        expect(box).to_have_value("" if typed == question else typed)
        backend.let.release()
        expect(second.at("#spent")).to_contain_text("in total")
    first.ask("First?")
    second.at("#compare").click()
    expect(waiting).to_have_text("Waiting for the model…")
    first.at("#stop").click()
    expect(second.at("#compare-question")).to_have_text("Two?")
    expect(waiting).to_have_text("")
    second.at("#stop").click()
    expect(second.at("#stop")).to_be_disabled()


@pytest.mark.parametrize(("typed", "left"), [("", "What?"), ("Another?", "Another?")])
def test_a_question_that_failed_returns_to_an_empty_box_only(
    come: Callable[..., Visitor], backend: HeldBackend, monkeypatch: pytest.MonkeyPatch, typed: str, left: str
) -> None:
    monkeypatch.setattr(backend, "failure", "broken")
    visitor = come().sees_a_picture()
    box = visitor.at("#question textarea")
    visitor.ask("What?")
    expect(visitor.at("#chat .user.message")).to_have_text("What?")
    expect(box).to_have_value("")
    box.fill(typed)
    backend.let.release()
    expect(visitor.toast).to_be_visible()
    expect(visitor.at("#chat .message")).to_have_count(0)
    expect(box).to_have_value(left)


def test_a_question_without_an_answer_returns_to_its_box_when_another_picture_ends_it(
    come: Callable[..., Visitor],
) -> None:
    visitor = come().sees_a_picture()
    box, asked = visitor.at("#question textarea"), visitor.at("#chat .user.message")
    for number in (1, 0):
        visitor.ask("What?")
        expect(asked).to_have_text("What?")
        expect(box).to_have_value("")
        visitor.at("#examples .gallery-item").nth(number).click()
        expect(asked).to_have_count(0)
        expect(box).to_have_value("What?")
