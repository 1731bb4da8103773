"""The page's layout in Chromium: what is in view at four sizes, what is enabled, what is kept, what axe-core finds."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from llava.serve.engine import ChatEngine
from llava.serve.web.backend import EngineBackend
from llava.serve.web.chart import embedded_curve
from llava.serve.web.feedback import FeedbackLog
from llava.serve.web.handlers import Demo
from llava.serve.web.page import PageText
from llava.serve.web.views import ALTS, LINES, PICTURE
from llava.utils import demo_picture_paths
from tests.llava.serve.openai.serving import QUESTION, Gate, Talker, becomes_idle
from tests.llava.serve.web.pages import PHONE, Visitor, needs_chromium, page_of

SIZES = ((1400, 900), (1180, 820), (1024, 768), PHONE)
FILES = [str(path) for path in demo_picture_paths()]
FOLLOWING = "How many objects are there?"
THIRD = "What shape is the purple object?"
LONG = "What shape is the purple object? " * 22

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def url(engine: ChatEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    demo = Demo(EngineBackend(engine), feedback=FeedbackLog(tmp_path_factory.mktemp("votes")), curve=embedded_curve())
    with page_of(demo, PageText("A notice.", FILES, [QUESTION, FOLLOWING, THIRD])) as url:
        yield url


def faults(visitor: Visitor) -> list[str]:
    """Serious faults of accessibility that axe finds."""
    found = Axe().run(visitor.page).response["violations"]
    return [rule["id"] for rule in found if rule["impact"] in ("serious", "critical")]


def test_question_and_comparison_are_in_view_at_every_size_and_axe_finds_nothing_serious(
    come: Callable[..., Visitor],
) -> None:
    visitor = come().sees_a_picture()
    for scheme, sizes in (("light", SIZES), ("dark", SIZES[:1])):
        visitor.page.emulate_media(color_scheme=scheme)
        for width, height in sizes:
            visitor.page.set_viewport_size({"width": width, "height": height})
            visitor.at("#clear").click()
            expect(visitor.at("#compare-card")).not_to_be_visible()
            expect(visitor.at("#question textarea")).to_be_in_viewport(ratio=1)
            visitor.add(FILES[1:3])
            expect(visitor.at("#strip button")).to_have_count(2)
            visitor.ask(QUESTION)
            expect(visitor.at("#spent")).to_contain_text("in total")
            expect(visitor.answer).to_be_in_viewport()
            expect(visitor.at("#strip li")).to_have_count(3)
            expect(visitor.at("#strip button")).to_have_count(0)  # they have been asked about
            visitor.at("#question textarea").fill(LONG)
            visitor.at("#compare").click()
            expect(visitor.at("#side-qlip")).to_contain_text("in total")
            expect(visitor.at("#side-qlip .side-answer")).to_be_in_viewport(ratio=1)
            expect(visitor.at("#question textarea")).to_be_in_viewport(ratio=1)
            visitor.at("#undo").click(trial=True)  # nothing covers it
            assert visitor.overflow() == []
        assert faults(visitor) == []
    visitor.at("#clear").click()
    expect(visitor.page.get_by_label(f"Select example 1: {QUESTION}")).to_be_visible()
    assert faults(visitor) == []
    visitor.page.emulate_media(color_scheme="light")


def test_no_choice_of_a_view_or_a_way_is_cut_off(come: Callable[..., Visitor]) -> None:
    visitor = come().sees_a_picture()
    for width, switch in itertools.product((320, 375, 768, 1200, 1280), ("#view", "#way")):
        visitor.page.set_viewport_size({"width": width, "height": 800})
        box = visitor.at(f"{switch} .wrap").last.bounding_box()
        labels = [label.bounding_box() for label in visitor.at(f"{switch} label").all()]
        assert len(labels) >= 3
        for label in labels:
            assert box["x"] <= label["x"] and label["x"] + label["width"] <= box["x"] + box["width"] + 1
        cut = f"document.querySelectorAll('{switch} label')"
        assert visitor.page.evaluate(f"[...{cut}].every(label => label.scrollWidth <= label.clientWidth + 1)")


def test_on_a_phone_the_question_box_covers_no_control_at_the_end_of_the_page(come: Callable[..., Visitor]) -> None:
    visitor = come(PHONE).sees_a_picture()
    visitor.page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    bar = visitor.at("#ask-bar").bounding_box()
    last = visitor.at("#settings-card input[type=range]").last.bounding_box()
    assert last["y"] + last["height"] < bar["y"]
    for name in ("add-picture", "ask", "compare"):
        visitor.at(f"#{name}").click(trial=True)  # nothing is drawn over it


SMALL = """() => [...document.querySelectorAll('button, a, input, [tabindex="0"]')]
    .filter(each => each.checkVisibility() && !each.closest('[aria-hidden], label:has(input), .sr-only'))
    .filter(each => Math.min(each.offsetWidth, each.offsetHeight) < 24).map(each => each.outerHTML.slice(0, 200))"""


def test_on_a_phone_every_control_has_a_name_one_tab_stop_and_room_for_a_finger(
    come: Callable[..., Visitor], engine: ChatEngine
) -> None:
    visitor = come(PHONE).sees_a_picture()
    drawing, download = visitor.at("#seen img"), visitor.at("#seen a.download-link")
    for group in ("View", "Way of seeing"):
        expect(visitor.page.get_by_role("group", name=group)).to_be_visible()
    drawing.focus()
    visitor.page.keyboard.press("Shift+Tab")
    expect(download).to_be_focused()
    expect(download).to_have_accessible_name("Download")
    visitor.page.keyboard.press("Shift+Tab")
    expect(visitor.at("#seen").get_by_label("Fullscreen")).to_be_focused()
    expect(drawing).to_have_attribute("alt", ALTS[LINES])
    visitor.page.get_by_role("radio", name="Picture", exact=True).evaluate("radio => radio.click()")
    expect(drawing).to_have_attribute("alt", ALTS[PICTURE])
    with Gate(engine):
        visitor.ask(QUESTION)
        expect(visitor.answer).to_have_text("…")
        visitor.at("#stop").click()
        expect(visitor.answer).to_have_text("stopped")
        expect(visitor.at("#chat").get_by_label("Like", exact=True)).to_have_count(1)
        expect(visitor.at("#chat").get_by_label("Like", exact=True)).not_to_be_visible()
    assert becomes_idle(engine)
    visitor.greedy().ask(QUESTION)
    expect(visitor.at("#spent")).to_contain_text("in total")
    expect(visitor.at("#chat").get_by_label("Like", exact=True).last).to_be_visible()
    assert visitor.page.evaluate(SMALL) == []
    heights = [visitor.at(f"#{name}").bounding_box()["height"] for name in ("ask", "add-picture")]
    visitor.at("#question textarea").fill("several\nlines\nof\ntext")
    assert visitor.at("#question").bounding_box()["height"] > 2 * heights[0]
    assert [visitor.at(f"#{name}").bounding_box()["height"] for name in ("ask", "add-picture")] == heights


def test_arrow_keys_choose_a_radio_of_a_group_and_tab_leaves_the_group(come: Callable[..., Visitor]) -> None:
    visitor = come().sees_a_picture()
    for group in ("#view", "#way"):
        visitor.at(f"{group} input:checked").focus()
        for key, step in (("ArrowRight", 1), ("ArrowLeft", -1)):
            radios = visitor.at(f"{group} input").all()
            following = radios[[radio.is_checked() for radio in radios].index(True) + step]
            visitor.page.keyboard.press(key)
            expect(following).to_be_focused()
            expect(following).to_be_checked()
        visitor.page.keyboard.press("Tab")
        expect(visitor.at(f"{group} :focus")).to_have_count(0)
        visitor.page.keyboard.press("Shift+Tab")
        expect(following).to_be_focused()
        expect(visitor.at(f"{group} input:checked")).to_have_count(1)


def test_a_toast_names_the_file_that_is_refused(come: Callable[..., Visitor], tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("letter.png", "note.png")]
    for path in paths:
        path.write_text("Dear Sir")
    visitor = come().sees_a_picture()
    visitor.add([str(path) for path in paths])
    for path in paths:
        expect(visitor.page.get_by_text(f"{path.name} cannot be used: Not a readable image")).to_be_visible()


def test_stop_regenerate_and_undo_are_enabled_while_they_have_something_to_do(
    come: Callable[..., Visitor], engine: ChatEngine
) -> None:
    visitor = come().sees_a_picture().greedy()
    stop, regenerate, undo = (visitor.at(f"#{name}") for name in ("stop", "regenerate", "undo"))
    for button in (stop, regenerate, undo):
        expect(button).to_be_disabled()
    Talker(engine, "a purple ring")
    visitor.ask(QUESTION)
    expect(visitor.answer).to_have_text("a purple ring")
    expect(stop).to_be_enabled()
    expect(regenerate).to_be_disabled()
    stop.click()
    expect(stop).to_be_disabled()
    expect(regenerate).to_be_enabled()
    assert becomes_idle(engine)
    del engine._generate
    undo.click()
    expect(visitor.at("#question textarea")).to_have_value(QUESTION)
    expect(visitor.at("#chat .message")).to_have_count(0)
    expect(regenerate).to_be_disabled()
    visitor.page.get_by_label(f"Select example 1: {QUESTION}").click()
    expect(visitor.at("#spent")).to_contain_text("in total")
    visitor.at("#suggestions button").nth(1).click()  # one after another
    expect(visitor.at("#chat .user.message")).to_have_text([QUESTION, FOLLOWING])
    expect(visitor.at("#chat .bot.message")).to_have_count(2)
    expect(stop).to_be_disabled()


def test_the_question_box_takes_the_focus_of_a_button_that_is_disabled_when_pressed_by_a_key(
    come: Callable[..., Visitor],
) -> None:
    visitor = come().sees_a_picture().greedy()
    question = visitor.at("#question textarea")
    visitor.ask(QUESTION)
    for name, said in (("regenerate", ""), ("undo", QUESTION)):
        button = visitor.at(f"#{name}")
        expect(button).to_be_enabled()
        button.focus()
        visitor.page.keyboard.press("Enter")
        expect(question).to_be_focused()
        expect(question).to_have_value(said)
    expect(visitor.at("#chat .message")).to_have_count(0)
    resets = [button.get_attribute("aria-label") for button in visitor.at(".reset-button").all()]
    assert len(resets) == len(set(resets)) == 5 and "Reset Token budget to its default" in resets


def test_added_pictures_are_removed_by_mouse_and_by_keyboard_and_the_typed_text_stays(
    come: Callable[..., Visitor],
) -> None:
    visitor = come().sees_a_picture().greedy()
    visitor.at("#question textarea").fill("Which one is")
    visitor.add(FILES[1:4])
    thumbnails, buttons = visitor.at("#strip li"), visitor.at("#strip button")
    expect(thumbnails).to_have_count(4)
    assert visitor.overflow() == []
    buttons.nth(0).click()
    expect(thumbnails).to_have_count(3)
    buttons.nth(1).focus()
    visitor.page.keyboard.press("Enter")
    expect(thumbnails).to_have_count(2)
    expect(buttons.last).to_be_focused()
    expect(visitor.at("#question textarea")).to_have_value("Which one is")
    visitor.page.keyboard.press("Space")
    expect(thumbnails).to_have_count(0)
    expect(visitor.at("#add-picture").first).to_be_focused()


def test_the_chosen_colours_are_kept_and_otherwise_the_system_s_are_followed(come: Callable[..., Visitor]) -> None:
    visitor = come(color_scheme="light").sees_a_picture()
    dark = visitor.at("body.dark")
    expect(dark).to_have_count(0)
    visitor.page.emulate_media(color_scheme="dark")
    expect(dark).to_have_count(1)
    visitor.at("#appearance").click()
    expect(dark).to_have_count(0)
    visitor.page.reload()
    visitor.sees_a_picture()
    expect(dark).to_have_count(0)
    visitor.page.emulate_media(color_scheme="light")


def test_full_screen_fills_a_phone(come: Callable[..., Visitor]) -> None:
    visitor = come(PHONE).sees_a_picture()
    for name in ("picture", "seen"):
        visitor.at(f"#{name}").get_by_label("Fullscreen").click()
        expect(visitor.at(f"#{name}")).to_have_class(re.compile("fullscreen"))
        fills = """([selector, width, height]) => {
            const { x, y, width: across, height: down } = document.querySelector(selector).getBoundingClientRect();
            return x === 0 && y === 0 && across === width && down === height; }"""
        visitor.page.wait_for_function(fills, arg=[f"#{name}", *PHONE])  # it grows for a moment
        at_bottom = f"([x, y]) => document.querySelector('#{name}').contains(document.elementFromPoint(x, y))"
        assert visitor.page.evaluate(at_bottom, [PHONE[0] / 2, PHONE[1] - 20])  # the question bar lies below
        visitor.at(f"#{name}").get_by_label("Exit fullscreen mode").click()
        expect(visitor.at("#question textarea")).to_be_in_viewport(ratio=1)
