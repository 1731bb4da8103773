"""The page draws what the model sees and answers questions, for several visitors at the same time."""

from __future__ import annotations

import asyncio
import re
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.serve.engine import ChatEngine
from llava.serve.engine.answer_stream import AnswerStream
from llava.serve.engine.params import QLIPOptions, Sampling
from llava.serve.web.backend import EngineBackend
from llava.serve.web.controls import CLIP, QLIP
from llava.serve.web.controls import QUESTION as BY_QUESTION
from llava.serve.web.handlers import Demo
from llava.serve.web.page import build_page
from llava.serve.web.session import CUT, Exchange, Session
from llava.serve.web.views import NO_PICTURE
from tests.llava.checkpoints import make_llava_checkpoint
from tests.llava.serve.openai.serving import DEADLINE, Gate, picture
from tests.llava.serve.web.clients import (
    ALPHA,
    BUDGET,
    FIRST,
    QUESTION,
    SECOND,
    NewVisitor,
    alone,
    ask,
    controls,
    count,
    request,
    show,
    steps,
    talk_of,
)


@pytest.mark.parametrize(("way", "alpha", "budget"), [(QLIP, 0.8, 96), (QLIP, 0, 300), (QLIP, 3, 20), (CLIP, 0.8, 96)])
def test_moving_a_control_shows_what_the_model_would_see_without_running_it(
    new_visitor: NewVisitor, engine: ChatEngine, way: str, alpha: float, budget: int
) -> None:
    visitor = new_visitor()
    options = QLIPOptions(enabled=False) if way == CLIP else QLIPOptions(alpha=alpha, max_tokens=budget)
    view = engine.vision.prepare(picture(), engine.vision.settings(options))
    with Gate(engine) as gate:  # as while the model answers somebody else
        seen, cost = visitor.predict(*controls(way, alpha, budget), api_name="/look")
        assert gate.batches == []
    assert count(cost) == view.tokens
    assert min(Image.open(seen).size) > 300


def test_a_new_picture_starts_a_new_conversation(new_visitor: NewVisitor) -> None:
    visitor = new_visitor()
    ask(visitor)
    _, seen, cost, chat, *_ = show(visitor, SECOND)
    assert Image.open(seen).size[0] > 300
    assert count(cost) > 64
    assert chat == []


def test_no_two_drawings_share_a_file(demo: Demo) -> None:
    first, second = (demo.draw(Session(picture()), *controls())[0] for _ in range(2))
    assert first and second and first != second
    assert Path(first).read_bytes() == Path(second).read_bytes()


def test_without_a_picture_there_is_nothing_to_see(new_visitor: NewVisitor) -> None:
    assert new_visitor(None).predict(*controls(), api_name="/look") == (None, NO_PICTURE)


@pytest.fixture
def read_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the model go on only when each piece has been read: on busy cores a reader gets several at a time."""
    put, take, taken = AnswerStream._put, AnswerStream._take, threading.Event()

    def put_and_wait(stream: AnswerStream, piece: str) -> None:
        taken.clear()
        put(stream, piece)
        taken.wait(DEADLINE)

    def note_taken(stream: AnswerStream) -> tuple[list[str], bool]:
        pieces, ended = take(stream)
        if pieces:
            taken.set()
        return pieces, ended

    monkeypatch.setattr(AnswerStream, "_put", put_and_wait)
    monkeypatch.setattr(AnswerStream, "_take", note_taken)


@pytest.mark.usefixtures("read_piece_by_piece")
def test_a_question_is_answered_step_by_step_as_the_engine_answers(new_visitor: NewVisitor, engine: ChatEngine) -> None:
    shown = ask(new_visitor(), f" {QUESTION} ")
    asked, answer = ("user", QUESTION), alone(engine, FIRST)
    assert shown[0] == [asked]
    assert shown[-1] == [asked, ("assistant", answer)]
    texts = [text for step in shown for role, text in step[1:]]  # how many depends on how fast the model is
    assert all(answer.startswith(text) for text in texts)


def test_the_switch_and_the_sliders_decide_how_the_picture_is_seen(new_visitor: NewVisitor, engine: ChatEngine) -> None:
    visitor = new_visitor()
    by_clip = ask(visitor, QUESTION, *controls(CLIP))[-1][-1][1]
    visitor.predict(api_name="/clear")
    coarse = ask(visitor, QUESTION, *controls(alpha=3.0, budget=20))[-1][-1][1]
    assert by_clip == alone(engine, FIRST, enabled=False) != alone(engine, FIRST)
    assert coarse == alone(engine, FIRST, alpha=3.0, max_tokens=20)


def test_the_page_tells_what_an_answer_cost(new_visitor: NewVisitor) -> None:
    (*_, (_, cost)) = steps(new_visitor(), "/ask", QUESTION, *controls())
    assert re.search(
        r"<strong>\d+</strong> visual tokens.*<strong>[\d.]+ s</strong> to first token.* s</strong> in total", cost
    )


def test_a_second_question_is_asked_with_the_turns_that_were_answered() -> None:
    session = Session(picture()).with_answer("What?", "a circle").with_answer("stopped too early", "")
    turns = session.turns("Which colour?")
    assert [(turn.role, turn.text) for turn in turns] == [
        ("user", "What?"),
        ("assistant", "a circle"),
        ("user", "Which colour?"),
    ]
    assert [len(turn.images) for turn in turns] == [1, 0, 0]


def test_regenerating_asks_the_last_question_again(new_visitor: NewVisitor, engine: ChatEngine) -> None:
    visitor = new_visitor()
    ask(visitor, QUESTION, *controls(CLIP))
    (*_, (chat, _)) = steps(visitor, "/regenerate", *controls())
    assert talk_of(chat) == [("user", QUESTION), ("assistant", alone(engine, FIRST))]


def test_clearing_forgets_the_conversation_and_keeps_the_picture(new_visitor: NewVisitor) -> None:
    visitor = new_visitor()
    ask(visitor)
    chat, *_ = visitor.predict(api_name="/clear")
    assert chat == []
    assert ask(visitor, "Why?")[0] == [("user", "Why?")]


def test_comparing_answers_both_ways_outside_the_conversation(new_visitor: NewVisitor, engine: ChatEngine) -> None:
    visitor = new_visitor()
    ask(visitor, "How many objects are there?")
    final = steps(visitor, "/compare", QUESTION, *controls())[-1]
    (clip, qlip) = (part for part in final if isinstance(part, str))
    views = [
        engine.vision.prepare(picture(), engine.vision.settings(o))
        for o in (QLIPOptions(enabled=False), QLIPOptions(alpha=ALPHA, max_tokens=BUDGET))
    ]
    for side, answer, view in zip(
        (clip, qlip), (alone(engine, FIRST, enabled=False), alone(engine, FIRST)), views, strict=True
    ):
        assert f'<div class="side-answer" tabindex="0">{answer}</div>' in side
        assert f"<dd>{view.tokens}</dd><dt>visual tokens</dt>" in side
        assert "to first token" in side and "in total" in side
    assert len(ask(visitor, "Why?")[0]) == 3  # one exchange, and the new question


def test_each_step_of_a_comparison_shows_it(demo: Demo) -> None:
    """Gradio's browser side changes an output that it has not shown yet by what a later step leaves out of it."""
    session = Session(picture())

    async def panels() -> list[Any]:
        return [panel async for panel, *_ in demo.compare(request("visitor"), session, None, QUESTION, *controls())]

    found = asyncio.run(panels())
    assert len(found) > 2 and all(panel == gr.update(visible=True) for panel in found)


def test_the_question_decides_if_the_visitor_wants_that(new_visitor: NewVisitor, engine: ChatEngine) -> None:
    visitor, options = new_visitor(), {"alpha": ALPHA, "max_tokens": BUDGET, "budget": "question"}
    _, cost = visitor.predict(*controls(BY_QUESTION), api_name="/look")
    most = engine.vision.prepare(picture(), engine.vision.settings(QLIPOptions(**options)))
    assert count(cost) == most.tokens
    asked = f"Your question is first asked about {most.first_tokens} tokens; then the picture is split where it looks"
    assert f"{asked}, into at most {most.tokens}" in cost
    sampling = Sampling(temperature=0, max_new_tokens=32)
    answer = engine.submit(engine.question(QUESTION, 1), [picture()], sampling, QLIPOptions(**options))
    text = "".join(answer)
    (side,) = (part for part in steps(visitor, "/compare", QUESTION, *controls(BY_QUESTION))[-1][-1:])
    assert text in side and f"<dd>{answer.usage.visual_tokens}</dd><dt>visual tokens</dt>" in side
    assert re.search(rf"<dd>\d\.\d\d s</dd><dt>for a first pass of {most.first_tokens}</dt>", side)


def test_two_visitors_keep_their_own_picture_controls_and_conversation(
    new_visitor: NewVisitor, engine: ChatEngine
) -> None:
    visitor, other = new_visitor(FIRST), new_visitor(SECOND)
    first, second = ask(visitor), ask(other, "Why?", *controls(CLIP))
    again = ask(visitor, "And now?")
    assert first[-1] == [("user", QUESTION), ("assistant", alone(engine, FIRST))]
    assert second[-1] == [("user", "Why?"), ("assistant", alone(engine, SECOND, "Why?", enabled=False))]
    assert again[0] == [*first[-1], ("user", "And now?")]


def test_visitors_who_ask_at_the_same_time_are_answered_together(new_visitor: NewVisitor, engine: ChatEngine) -> None:
    visitors = [new_visitor() for _ in range(4)]
    with Gate(engine, opens_at=4) as gate:
        jobs = [visitor.submit(QUESTION, *controls(), api_name="/ask") for visitor in visitors]
        chats = [job.result()[0] for job in jobs]
        assert sum(gate.batches) == 4
        assert len(gate.batches) <= 2  # those who came before the model began, and those who waited for it, if any
    assert {talk_of(chat)[-1][1] for chat in chats} == {alone(engine, FIRST)}


def test_a_clip_model_is_shown_as_it_sees_and_cannot_be_switched(tmp_path: Path) -> None:
    path = str(make_llava_checkpoint(tmp_path, qlip=None))
    with closing(
        ChatEngine(*load_pretrained_model(path, None, get_model_name_from_path(path), device="cpu"))
    ) as engine:
        demo = Demo(EngineBackend(engine))
        seen, cost = demo.draw(Session(picture()), *controls())
        assert seen is not None and count(cost) == engine.vision.tower.num_patches
        page = build_page(demo)
        hidden = {block.elem_id for block in page.blocks.values() if not getattr(block, "visible", True)}
        assert {"way", "alpha", "budget", "compare"} <= hidden

        async def read() -> Session:
            (*_, (session, *_)) = [
                s async for s in demo.ask(request("a"), Session(picture()), None, "What?", *controls(length=6))
            ]
            return session

        sampling = Sampling(temperature=0, max_new_tokens=6)
        own = "".join(engine.reply(engine.question("What?", 1), [picture()], sampling)).strip()
        assert asyncio.run(read()).exchanges == (Exchange("What?", own, mark=CUT),)
