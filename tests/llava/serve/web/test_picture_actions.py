"""Pictures that are chosen while others are there: what fails takes nothing away, and what takes long says so."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from playwright.sync_api import Route, expect

from llava.images import DEFAULT_LIMITS
from llava.serve.engine import ChatEngine
from llava.serve.web.backend import EngineBackend
from llava.serve.web.handlers import Demo
from llava.serve.web.page import PageText
from tests.llava.serve.openai.serving import QUESTION
from tests.llava.serve.web.clients import FIRST, SECOND, alone
from tests.llava.serve.web.pages import Visitor, needs_chromium, page_of

pytestmark = needs_chromium

UPLOADS = re.compile(r"/gradio_api/upload(\?|$)")
DROP = """(text) => {
    const files = new DataTransfer();
    files.items.add(new File([text], "letter.txt", { type: "text/plain" }));
    const options = { dataTransfer: files, bubbles: true, cancelable: true };
    for (const type of ["dragenter", "dragover", "drop"])
        document.querySelector("#picture img").dispatchEvent(new DragEvent(type, options));
}"""

CLICK = "(selectors) => { for (const each of selectors) document.querySelector(each).click(); }"  # without a pause


class Held:
    """A function that waits, once it has been closed, until it is opened again."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.opened = function, threading.Event()
        self.opened.set()

    def __call__(self, *arguments: Any) -> Any:
        assert self.opened.wait(600)
        return self.function(*arguments)

    @contextmanager
    def closed(self) -> Iterator[None]:
        self.opened.clear()
        try:
            yield
        finally:
            self.opened.set()


@pytest.fixture(scope="module")
def held(engine: ChatEngine) -> tuple[Demo, Held]:
    """A demo, and its function that cuts pictures."""
    demo = Demo(EngineBackend(engine))
    cut = demo.backend.prepare = Held(demo.backend.prepare)  # type: ignore[method-assign]
    return demo, cut


@pytest.fixture(scope="module")
def url(held: tuple[Demo, Held]) -> Iterator[str]:
    with page_of(held[0], PageText("A notice.", [FIRST, SECOND], [QUESTION])) as url:
        yield url


def choose(visitor: Visitor, path: Path | str) -> None:
    visitor.at("#picture input[type=file]").first.set_input_files(path)


def expect_failed_upload(visitor: Visitor) -> None:
    """Allows what the browser and Gradio say of an upload that was meant to fail, and of its missing progress."""
    visitor.expected = ("Failed to load resource", "Response")


def press(visitor: Visitor, name: str) -> None:
    visitor.at("#picture").get_by_label(name).click()


def test_what_fails_or_is_left_unfinished_takes_neither_picture_nor_conversation_away(
    come: Callable[..., Visitor], tmp_path: Path
) -> None:
    (tmp_path / "large.jpg").write_bytes(b"\xff\xd8" + bytes(DEFAULT_LIMITS.max_bytes))
    (tmp_path / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    (tmp_path / "letter.png").write_text("Dear Sir")
    visitor = come(permissions=["camera"]).sees_a_picture().greedy()
    visitor.ask(QUESTION)
    expect(visitor.at("#spent")).to_contain_text("in total")
    view, refused = visitor.view, lambda route: route.fulfill(status=500, body="no room")

    def camera() -> None:
        press(visitor, "Capture from camera")
        expect(visitor.at("#picture").get_by_text("Click to Access Webcam")).to_be_visible()
        press(visitor, "Upload file")

    def upload_in_vain() -> None:
        assert visitor.problems == []
        visitor.page.route(UPLOADS, refused)
        choose(visitor, SECOND)

    for act, told in (
        (lambda: choose(visitor, tmp_path / "large.jpg"), "large.jpg is larger than 20 MB. Choose a smaller picture."),
        (lambda: choose(visitor, tmp_path / "drawing.svg"), "drawing.svg is an SVG drawing. Choose a PNG, JPEG or"),
        (lambda: choose(visitor, tmp_path / "letter.png"), "Not a readable image"),
        (lambda: visitor.page.evaluate(DROP, "Dear Sir"), "letter.txt is not a picture. Choose another file."),
        (lambda: press(visitor, "Paste from clipboard"), "The browser does not let this page read the clipboard."),
        (camera, ""),
        (upload_in_vain, "no room"),
    ):
        act()
        if told:
            expect(visitor.toast).to_contain_text(told)
            visitor.close_toasts()
        expect(visitor.at("#picture .image-frame img")).to_be_visible()
        expect(visitor.at("#picture")).not_to_have_class(re.compile("border_focus"))
        expect(visitor.at("#chat .user.message")).to_have_text(QUESTION)
        assert visitor.view == view
    visitor.page.unroute(UPLOADS)
    expect_failed_upload(visitor)
    with visitor.page.expect_file_chooser() as dialog:  # also while a picture is shown
        press(visitor, "Upload file")
    visitor.ask("And now?")
    expect(visitor.at("#chat .user.message")).to_have_text([QUESTION, "And now?"])
    dialog.value.set_files(SECOND)
    expect(visitor.at("#chat .message")).to_have_count(0)
    press(visitor, "Remove Image")
    expect(visitor.at("#seen img")).to_have_count(0)


def test_a_question_waits_for_the_picture_that_is_being_uploaded(
    come: Callable[..., Visitor], engine: ChatEngine
) -> None:
    visitor, held = come().sees_a_picture().greedy(), list[Route]()
    page, waiting = visitor.page, visitor.at("#waiting")
    page.route(UPLOADS, lambda route: held.append(route))
    for path, end in ((FIRST, Route.abort), (SECOND, Route.continue_)):  # one that fails, and one that is slow
        with page.expect_request(UPLOADS):
            choose(visitor, SECOND)
        visitor.ask(QUESTION)
        expect(waiting).to_have_text("Waiting for the picture…")
        expect(visitor.at("#chat .message")).to_have_count(0)
        end(held.pop())
        visitor.has_been_answered(alone(engine, path, enabled=True))
        expect(waiting).to_have_text("")
        visitor.at("#clear").click()
        expect(visitor.at("#chat .message")).to_have_count(0)
    with page.expect_request(UPLOADS):
        visitor.add([FIRST])
    visitor.ask(QUESTION)
    expect(waiting).to_have_text("Waiting for the picture…")
    held.pop().continue_()
    expect(visitor.at("#chat .user.message")).to_have_count(1)
    expect(visitor.at("#strip img").last).to_have_attribute("alt", "Picture 2, in the conversation")
    page.unroute(UPLOADS)
    expect_failed_upload(visitor)


def test_an_upload_that_never_ends_is_stopped_and_the_question_that_waited_for_it_returns(
    come: Callable[..., Visitor],
) -> None:
    visitor = come().sees_a_picture().greedy()
    page, box, waiting = visitor.page, visitor.at("#question textarea"), visitor.at("#waiting")
    stop, *others = (visitor.at(f"#{name}") for name in ("stop", "regenerate", "undo"))
    visitor.ask(QUESTION)
    expect(visitor.at("#spent")).to_contain_text("in total")
    example = visitor.at("#examples .gallery-item").first  # the one that is open
    for begin, end in (
        (lambda: choose(visitor, SECOND), stop.click),
        (lambda: visitor.add([SECOND]), lambda: page.keyboard.press("Escape")),
        (lambda: choose(visitor, SECOND), example.click),
    ):
        page.route(UPLOADS, lambda route: None, times=1)
        with page.expect_request(UPLOADS):
            begin()
        for button in others:
            expect(button).to_be_disabled()
        visitor.ask("And now?")
        expect(waiting).to_have_text("Waiting for the picture…")
        box.fill("")
        end()
        expect(visitor.toast).to_contain_text("The upload was stopped.")
        visitor.close_toasts()
        expect(box).to_have_value("And now?")
        expect(waiting).to_have_text("")
        expect(stop).to_be_disabled()
        for button in others:
            expect(button).to_be_enabled()
        expect(visitor.at("#picture .image-frame img")).to_be_visible()
    expect(visitor.at("#chat .user.message")).to_have_text(QUESTION)
    page.route(UPLOADS, lambda route: None, times=1)
    with page.expect_request(UPLOADS):
        choose(visitor, SECOND)
    with page.expect_file_chooser() as dialog:
        press(visitor, "Upload file")
    expect(visitor.toast).to_contain_text("The upload was stopped.")
    dialog.value.set_files(SECOND)
    expect(visitor.at("#chat .message")).to_have_count(0)
    expect_failed_upload(visitor)


def test_a_question_waits_for_the_example_chosen_before_it(
    come: Callable[..., Visitor], engine: ChatEngine, held: tuple[Demo, Held]
) -> None:
    visitor = come().sees_a_picture().greedy()
    visitor.at("#question textarea").fill(QUESTION)
    with held[1].closed():
        visitor.page.evaluate(CLICK, ["#examples .gallery-item:nth-child(2)", "#ask"])
        expect(visitor.at("#waiting")).to_have_text("Waiting for the picture…")
    visitor.has_been_answered(alone(engine, SECOND, enabled=True))
    expect(visitor.at("#waiting")).to_have_text("")


def test_a_picture_that_takes_long_to_cut_is_said_to_be_cut(
    come: Callable[..., Visitor], held: tuple[Demo, Held]
) -> None:
    cut, busy = held[1], {"true": "Cutting the picture…", "false": ""}

    def is_busy(value: str) -> None:
        expect(visitor.at("#sees-card")).to_have_attribute("aria-busy", value)
        expect(visitor.at("#cutting [role=status]")).to_have_text(busy[value])

    with cut.closed():
        visitor = come()
        expect(visitor.at("#meter .hint")).to_have_text("Opening the picture…")
    visitor.sees_a_picture()
    is_busy("false")
    for act in (
        lambda: choose(visitor, SECOND),
        lambda: visitor.at("#budget input[type=range]").fill("20"),
        lambda: visitor.page.get_by_role("radio", name="Encoder input").check(force=True),
    ):
        with cut.closed():
            act()
            is_busy("true")
        is_busy("false")


def test_a_reason_to_refuse_a_picture_is_text(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(gr, "Warning", told.append)
    demo.refuse_picture("<b>.txt is not a picture.")
    assert told == ["&lt;b&gt;.txt is not a picture."]
    with pytest.raises(gr.Error, match="Reload the page"):
        demo.refuse_picture(["no text"])
