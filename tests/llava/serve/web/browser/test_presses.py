"""The last press counts: answers and comparisons that others end, in Chromium, and what they leave."""

from __future__ import annotations

from playwright.sync_api import expect

from llava.serve.engine import ChatEngine
from tests.llava.serve.openai.serving import Talker, becomes_idle
from tests.llava.serve.web.pages import Visitor, needs_chromium

pytestmark = needs_chromium


def test_whatever_is_pressed_the_last_press_counts_and_the_buttons_fit(
    visitor: Visitor, engine: ChatEngine, talker: Talker
) -> None:
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
