"""What the page does in the browser alone: pasted pictures, drafts, number fields and following a growing answer."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from llava.serve.engine import ChatEngine
from llava.serve.web.backend import EngineBackend
from llava.serve.web.handlers import Demo
from llava.serve.web.page import PageText
from llava.utils import demo_picture_paths
from tests.llava.serve.openai.serving import QUESTION
from tests.llava.serve.web.clients import SECOND, alone
from tests.llava.serve.web.pages import Visitor, needs_chromium, page_of

pytestmark = needs_chromium

PASTE = """([name, data, target, text]) => {
    const files = new DataTransfer(), bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
    files.items.add(new File([bytes], name, { type: "image/png" }));
    if (text) files.setData("text/plain", text);
    const event = new ClipboardEvent("paste", { clipboardData: files, bubbles: true, cancelable: true });
    return document.querySelector(target).dispatchEvent(event);
}"""


@pytest.fixture(scope="module")
def url(engine: ChatEngine) -> Iterator[str]:
    with page_of(Demo(EngineBackend(engine)), PageText("", [str(path) for path in demo_picture_paths()[:1]])) as url:
        yield url


@pytest.mark.parametrize("target", ["#question textarea", "body"])
def test_a_pasted_picture_is_opened(come: Callable[..., Visitor], engine: ChatEngine, target: str) -> None:
    visitor = come().sees_a_picture().greedy()
    before = visitor.view
    pasted = ["pasted.png", base64.b64encode(Path(SECOND).read_bytes()).decode(), target]
    assert not visitor.page.evaluate(PASTE, pasted)  # nobody else takes it
    expect(visitor.at("#seen img")).not_to_have_attribute("src", before or "")
    visitor.ask(QUESTION)
    visitor.has_been_answered(alone(engine, SECOND, QUESTION, enabled=True))


def test_text_that_is_pasted_with_its_picture_stays_text(come: Callable[..., Visitor]) -> None:
    """As word processors copy it."""
    visitor = come().sees_a_picture()
    pasted = ["pasted.png", base64.b64encode(Path(SECOND).read_bytes()).decode(), "#question textarea", "Why?"]
    assert visitor.page.evaluate(PASTE, pasted)  # the browser puts the text into the box


def test_a_draft_outlives_a_reload_and_a_question_does_not(come: Callable[..., Visitor]) -> None:
    visitor = come().sees_a_picture().greedy()
    box = visitor.at("#question textarea")
    visitor.ask(QUESTION)
    expect(visitor.at("#spent")).to_contain_text("in total")
    visitor.page.wait_for_function("() => !sessionStorage.getItem('llava-draft')")
    box.fill("What colour is")
    visitor.page.reload()
    visitor.sees_a_picture()
    visitor.problems.clear()  # Gradio logs that a reload aborts the events under way, such as the answer's drawing
    expect(box).to_have_value("What colour is")
    box.press("Enter")  # the page knows of it
    expect(visitor.at("#chat .user.message")).to_have_text("What colour is")
    visitor.page.wait_for_function("() => !sessionStorage.getItem('llava-draft')")


def test_a_number_field_keeps_what_was_typed_and_takes_the_nearest_value_allowed(come: Callable[..., Visitor]) -> None:
    visitor = come().sees_a_picture()
    number, slider = (visitor.at(f"#settings-card input[type={kind}]").first for kind in ("number", "range"))
    for typed, shown in (("0.33", "0.33"), ("9", "2")):
        number.fill(typed)
        number.blur()
        expect(number).to_have_value(shown)
    slider.fill("0.5")
    number.fill("")
    number.blur()
    expect(number).to_have_value("0.5")


def test_what_a_number_field_does_not_allow_becomes_the_nearest_value_or_the_last(come: Callable[..., Visitor]) -> None:
    """Typed key by key, so that "999" on the way to "99999" is not taken for what was meant."""
    visitor = come().sees_a_picture()
    number = visitor.at("#budget input[type=number]")
    number.fill("")
    number.press_sequentially("99999")
    number.evaluate("(field) => { field.value = '999'; }")  # as Gradio does, late, with the last number it knows
    number.blur()
    expect(number).to_have_value("1920")
    for typed, shown in (("-5", "1"), ("99999", "1920"), ("", "30"), ("3.7", "4")):
        number.fill("30")
        number.blur()
        expect(number).to_have_value("30")
        number.fill("")
        number.press_sequentially(typed)
        number.blur()
        expect(number).to_have_value(shown)
    visitor.ask(QUESTION)
    expect(visitor.at("#spent")).to_contain_text("in total")
    expect(visitor.at("#meter strong")).to_have_text(visitor.at("#spent strong").first.inner_text())
    expect(visitor.page.get_by_test_id("toast-body")).to_have_count(0)


def test_the_chat_follows_an_answer_unless_its_reader_has_scrolled_up(come: Callable[..., Visitor]) -> None:
    visitor = come().sees_a_picture()
    visitor.ask(QUESTION)
    expect(visitor.at("#spent")).to_contain_text("in total")
    grow = """(lines) => { document.querySelector("#chat .bot.message .md").append("\\n".repeat(lines) + "."); }"""
    place = """() => { const chat = document.querySelector("#chat .bubble-wrap");
        return [chat.scrollTop, chat.scrollHeight - chat.clientHeight - chat.scrollTop]; }"""
    at_end = f"() => {{ const [top, left] = ({place})(); return top > 0 && left < 2; }}"
    visitor.page.evaluate(grow, 80)
    visitor.page.wait_for_function(at_end)
    visitor.page.evaluate("() => document.querySelector('#chat .bubble-wrap').scrollTo(0, 0)")
    visitor.page.wait_for_function(f"() => ({place})()[0] === 0")
    visitor.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    visitor.page.evaluate(grow, 5)
    visitor.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert visitor.page.evaluate(place)[0] == 0
    visitor.ask("And now?")  # who asks wants to see the answer
    expect(visitor.at("#chat .bot.message")).to_have_count(2)
    visitor.page.wait_for_function(at_end)
