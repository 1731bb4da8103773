"""A visitor's session: pictures that are added to a conversation, and questions that are taken back."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from llava.serve.engine import ChatEngine
from llava.serve.engine.params import QLIPOptions, Sampling
from llava.serve.web.backend import EngineBackend
from llava.serve.web.handlers import Demo
from llava.serve.web.runs import TALK
from llava.serve.web.session import MAX_PICTURES, WAITING, Session
from tests.llava.serve.openai.serving import QUESTION, picture
from tests.llava.serve.web.clients import ALPHA, BUDGET, SECOND, controls, request

RED, BLUE = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")


@pytest.fixture
def upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Gradio's description of an uploaded picture."""
    monkeypatch.setattr("llava.serve.web.session.get_upload_folder", lambda: str(tmp_path))
    return {"path": str(shutil.copy(SECOND, tmp_path))}


def images_of(session: Session, question: str = "Next?") -> list[tuple[Image.Image, ...]]:
    return [tuple(turn.images) for turn in session.turns(question) if turn.role == "user"]


def test_a_picture_goes_with_the_question_after_it() -> None:
    session = Session(RED).with_answer("What?", "red").with_picture(BLUE)
    assert images_of(session) == [(RED,), (BLUE,)]
    assert images_of(session.with_answer("Which?", "blue")) == [(RED,), (BLUE,), ()]
    assert images_of(session.without_talk()) == [(RED, BLUE)]


def test_a_picture_of_a_question_without_an_answer_goes_with_the_next() -> None:
    session = Session(RED).with_picture(BLUE).with_answer("What?", "")
    assert images_of(session) == [(RED, BLUE)]


def test_undo_puts_a_question_back_into_its_box_with_its_pictures(demo: Demo) -> None:
    session = Session(RED).with_answer("What?", "red").with_picture(BLUE).with_answer("Which?", "blue")
    before, messages, _, box = asyncio.run(demo.undo(request("a"), session, None, ""))
    assert box == "Which?"
    assert [message["content"] for message in messages] == ["What?", "red"]
    assert before.pending == (BLUE,) and images_of(before) == images_of(session)[:2]


def test_undo_without_a_question_says_so(demo: Demo) -> None:
    with pytest.raises(gr.Error, match="There is no question to take back"):
        asyncio.run(demo.undo(request("a"), Session(RED), None, ""))


def test_undo_leaves_what_is_typed(demo: Demo) -> None:
    session = Session(RED).with_answer("What?", "red")
    before, *_, box = asyncio.run(demo.undo(request("a"), session, None, "a draft"))
    assert before.exchanges == () and box == gr.skip()


def test_messages_show_marks_literally_and_count_them() -> None:
    session = Session(RED).with_answer("<b>", "1 < 2", mark="cut").with_answer("Why?", "", mark=WAITING)
    session = session.with_answer("And?", "")
    assert [(message["role"], message["content"]) for message in session.messages()] == [
        ("user", "&lt;b&gt;"),
        ("assistant", '1 &lt; 2 <span class="mark">cut</span>'),
        ("user", "Why?"),
        ("assistant", f'<span class="mark alone">{WAITING}</span>'),
        ("user", "And?"),
    ]
    assert [session.exchange_of(number) for number in range(5)] == [0, 0, 1, 1, 2]
    assert session.with_mark("stopped").exchanges[-1].mark == "stopped"
    assert [turn.text for turn in session.turns("Now?")] == ["<b>", "1 < 2", "Now?"]  # the model gets no marks


def test_clearing_keeps_the_first_picture(demo: Demo) -> None:
    session = Session(RED).with_picture(BLUE).with_answer("What?", "red")
    assert asyncio.run(demo.clear(request("a"), session, None))[0].pictures == (RED,)


def test_an_added_picture_is_drawn_and_asked_about_with_the_first(
    demo: Demo, engine: ChatEngine, upload: dict[str, Any]
) -> None:
    session, strip, drawing, _ = demo.add_pictures(request("a"), Session(picture()), [upload], *controls())
    assert strip.count("<li>") == 2 and "Picture 2, goes with the next question" in strip
    assert drawing is not None and Image.open(drawing).format == "PNG"

    async def ask() -> list[Any]:
        return [step async for step in demo.ask(request("a"), session, None, QUESTION, *controls())]

    *_, (session, _, cost) = asyncio.run(ask())
    options, sampling = QLIPOptions(alpha=ALPHA, max_tokens=BUDGET), Sampling(temperature=0, max_new_tokens=64)
    answer = engine.submit(engine.question(QUESTION, 2), [picture(0), picture(1)], sampling, options)
    assert session.exchanges[0].answer == "".join(answer).strip()
    assert f"<strong>{answer.usage.visual_tokens}</strong> visual tokens" in cost


def test_several_pictures_are_added_at_once_and_what_cannot_be_is_named(
    demo: Demo, upload: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(gr, "Warning", warned.append)
    (tmp_path / "letter").write_text("Dear Sir")
    letter = {"path": str(tmp_path / "letter"), "orig_name": "<b>.png"}
    session, strip, *_ = demo.add_pictures(request("a"), Session(RED), [upload, letter, upload], *controls())
    assert [picture.size for picture in session.pictures] == [RED.size, picture(1).size, picture(1).size]
    assert strip.count("<li>") == 3 and strip.count("<button") == 2  # not for the first, which has a card
    (letter_warning,) = warned
    assert letter_warning.startswith("&lt;b&gt;.png cannot be used: Not a readable image")
    assert demo.add_pictures(request("a"), session, [letter], *controls())[0] == session
    assert warned[1:] == warned[:1], "one file alone is told in the same way"
    session, *_ = demo.add_pictures(request("a"), session, [upload] * MAX_PICTURES, *controls())
    assert len(session.pictures) == MAX_PICTURES
    assert warned[2:] == [
        f"A conversation takes {MAX_PICTURES} pictures: the first {MAX_PICTURES - 3} of "
        f"{MAX_PICTURES} files were taken."
    ]


def test_a_picture_is_removed_until_it_has_been_asked_about(demo: Demo) -> None:
    green = Image.new("RGB", (8, 8), "green")
    session = Session(RED).with_answer("What?", "red").with_picture(BLUE).with_picture(green)
    kept, strip, drawing, _ = demo.remove_picture(request("a"), session, [2, 3], *controls())
    assert kept.pictures == (RED, green) and kept.exchanges == session.exchanges
    assert 'aria-label="Remove picture 2"' in strip and drawing is not None
    assert demo.remove_picture(request("a"), kept, [2, 3], *controls()) == (gr.skip(),) * 4  # pressed twice
    looked_at = "The drawing shows the newest (“What it looked at”: the newest asked about)."
    assert f"2 pictures. {looked_at} Clear removes all but the first." in strip
    asked = kept.with_answer("Which?", "green")
    assert "<button" not in demo.show_strip(asked)
    assert "2 pictures. The drawing shows the newest. Clear removes all but the first." in demo.show_strip(asked)
    for chosen, why in (([2, 2], "has been asked about this picture"), ([1, 2], "has been"), ("x", "not a picture")):
        with pytest.raises(gr.Error, match=why):
            demo.remove_picture(request("a"), asked, chosen, *controls())


def test_a_picture_that_cannot_be_added_is_refused_with_a_way_out(engine: ChatEngine, upload: dict[str, Any]) -> None:
    demo, full = Demo(EngineBackend(engine)), Session(RED)
    for _ in range(MAX_PICTURES - 1):
        full = full.with_picture(BLUE)
    cases = (
        ("a", Session(), upload, "There is no picture yet"),
        ("a", full, upload, f"There are {MAX_PICTURES} pictures already. Remove one, or clear the conversation."),
        ("busy", Session(RED), upload, "Wait for the answer or press Stop"),
        ("a", Session(RED), "x", "not an uploaded file"),
    )

    async def add_each() -> None:
        async with demo.runs.start("busy", TALK):
            for visitor, session, sent, why in cases:
                with pytest.raises(gr.Error, match=why):
                    demo.add_pictures(request(visitor), session, sent, *controls())

    asyncio.run(add_each())


def test_an_answer_is_rendered_once_though_later_ones_send_the_conversation_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rendered: list[str] = []
    monkeypatch.setattr("llava.serve.web.session.render_answer", lambda text, mark: rendered.append(text) or text)
    earlier = Session().with_answer("Q", "first")
    for answer in ("s", "se", "second"):
        assert earlier.with_answer("Q", answer).messages()[-1]["content"] == answer
    assert rendered == ["first", "s", "se", "second"]
