"""The web demo as people meet it: Chromium opens the page, looks and clicks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import expect

from llava.serve.engine import ChatEngine
from llava.serve.engine.params import QLIPOptions, Sampling
from llava.serve.web.controller_client import ControllerBackend
from llava.serve.web.handlers import Demo
from llava.serve.web.page import PageText
from llava.serve.workers import controller_app, worker_app
from llava.serve.workers.dispatcher import Dispatcher, Timeouts
from llava.serve.workers.registry import Registry
from tests.llava.serve.openai.serving import (
    MODEL,
    QUESTION,
    Talker,
    becomes_idle,
    picture,
    served,
)
from tests.llava.serve.web.browser.scenes import FILES
from tests.llava.serve.web.pages import PHONE, Visitor, needs_chromium, page_of

GREEDY = Sampling(temperature=0, max_new_tokens=64)

pytestmark = needs_chromium


def says(engine: ChatEngine, index: int, question: str = QUESTION, **options: Any) -> str:
    """The engine's own greedy answer about one of the demo's pictures."""
    options = options or {"enabled": True}
    answer = engine.submit(engine.question(question, 1), [picture(index)], GREEDY, QLIPOptions(**options))
    return "".join(answer).strip()


def test_an_own_picture_and_an_example_are_asked_about_and_a_file_that_is_no_picture_changes_neither(
    visitor: Visitor, engine: ChatEngine, tmp_path: Path
) -> None:
    (tmp_path / "letter.png").write_text("Dear Sir")
    visitor.upload(FILES[1])
    before = visitor.view
    visitor.at("#picture input[type=file]").first.set_input_files(str(tmp_path / "letter.png"))
    expect(visitor.toast).to_contain_text("Not a readable image")
    expect(visitor.toast).to_contain_text("Choose another picture.")
    assert visitor.view == before
    visitor.ask(QUESTION)  # about the picture of before
    visitor.has_been_answered(says(engine, 1))
    expect(visitor.at("#chat .user.message")).to_have_text(QUESTION)
    expect(visitor.at("#question textarea")).to_have_value("")
    expect(visitor.at("#spent strong").first).to_have_text(visitor.at("#meter strong").inner_text())
    visitor.at("#examples .gallery-item").nth(2).click()
    expect(visitor.at("#seen img")).not_to_have_attribute("src", before or "")
    visitor.page.get_by_label(f"Select example 1: {QUESTION}").click()
    visitor.has_been_answered(says(engine, 2))


def test_an_answer_is_shown_while_it_comes_until_it_is_stopped_or_its_picture_or_visitor_goes(
    come: Callable[..., Visitor], engine: ChatEngine, talker: Talker
) -> None:
    visitor = come().sees_a_picture()
    visitor.ask(QUESTION)
    expect(visitor.answer).to_have_text("a purple ring")
    expect(visitor.at("#spent")).not_to_contain_text("in total")
    visitor.at("#stop").click()
    assert becomes_idle(engine)
    visitor.ask("And now?")
    expect(visitor.at("#chat .user.message")).to_have_count(2)
    expect(visitor.at("#chat .bot.message").first).to_have_text(re.compile("a purple ring *stopped"))
    for end in (
        visitor.at("#clear").click,
        lambda: visitor.upload(FILES[1]),
        visitor.at("#examples .gallery-item").nth(2).click,
    ):
        expect(visitor.answer).to_have_text("a purple ring")
        end()
        assert becomes_idle(engine)
        expect(visitor.at("#chat .message")).to_have_count(0)
        visitor.ask(QUESTION)
    expect(visitor.answer).to_have_text("a purple ring")
    visitor.page.close()
    assert becomes_idle(engine)
    assert [answer.finish_reason for answer in talker.answers] == ["cancelled"] * 5


def test_the_sliders_and_the_switch_redraw_and_recount_without_the_model(
    come: Callable[..., Visitor], engine: ChatEngine, talker: Talker
) -> None:
    visitor = come().sees_a_picture()
    counts, views = [visitor.tokens], [visitor.view]

    def redrawn() -> None:
        expect(visitor.at("#seen img")).not_to_have_attribute("src", views[-1] or "")
        expect(visitor.at("#meter strong")).not_to_have_text(f"{counts[-1]:,}")
        counts.append(visitor.tokens)
        views.append(visitor.view)

    visitor.at("#budget input[type=range]").fill("400")
    visitor.at("#alpha input[type=range]").fill("0")
    redrawn()
    visitor.at("#budget input[type=range]").fill("20")
    redrawn()
    visitor.page.get_by_role("radio", name="CLIP", exact=True).check(force=True)
    redrawn()
    assert 300 < counts[1] <= 400 and counts[2] <= 20 and counts[3] == 64
    expect(visitor.at("#alpha input[type=range]")).to_be_disabled()
    visitor.page.get_by_role("radio", name="QLIP", exact=True).check(force=True)
    redrawn()
    expect(visitor.at("#alpha input[type=range]")).to_be_enabled()
    assert talker.answers == []


def test_a_comparison_shows_both_answers_with_tokens_and_times(visitor: Visitor, engine: ChatEngine) -> None:
    visitor.at("#question textarea").fill("What colour is the ring?")
    visitor.at("#compare").click()
    for way, options in (("clip", {"enabled": False}), ("qlip", {"enabled": True})):
        side = visitor.at(f"#side-{way}")
        expect(side.locator(".figures dt")).to_have_text(["visual tokens", "to first token", "in total"])
        expect(side.locator(".side-answer")).to_have_text(says(engine, 0, "What colour is the ring?", **options))
        expect(side.locator("img")).to_be_visible()
    assert visitor.at("#side-clip .figures dd").first.inner_text() == "64"
    assert visitor.at("#side-qlip .figures dd").first.inner_text() == str(visitor.tokens)
    expect(visitor.at("#chat .message")).to_have_count(0)


def test_an_answer_can_be_had_anew_and_the_conversation_cleared(visitor: Visitor, engine: ChatEngine) -> None:
    visitor.page.get_by_role("radio", name="CLIP", exact=True).check(force=True)
    expect(visitor.at("#meter strong")).to_have_text("64")
    visitor.ask(QUESTION)
    visitor.has_been_answered(says(engine, 0, enabled=False))
    visitor.page.get_by_role("radio", name="QLIP", exact=True).check(force=True)
    visitor.at("#regenerate").click()
    visitor.has_been_answered(says(engine, 0))
    expect(visitor.at("#chat .bot.message")).to_have_count(1)
    visitor.at("#clear").click()
    expect(visitor.at("#chat .message")).to_have_count(0)
    expect(visitor.at("#seen img")).to_be_visible()


def test_two_visitors_see_their_own_pictures_and_answers(
    visitor: Visitor, come: Callable[..., Visitor], engine: ChatEngine
) -> None:
    one, other = visitor, come().sees_a_picture().greedy()
    one.upload(FILES[1])
    other.upload(FILES[3])
    assert one.view != other.view
    one.ask(QUESTION)
    other.ask(QUESTION)
    one.has_been_answered(says(engine, 1))
    other.has_been_answered(says(engine, 3))
    assert says(engine, 1) != says(engine, 3)


def test_a_picture_comes_from_the_clipboard_and_from_the_camera(come: Callable[..., Visitor]) -> None:
    visitor = come(permissions=["clipboard-read", "clipboard-write", "camera"]).sees_a_picture()
    before = visitor.view
    visitor.page.evaluate(
        """async () => {
            const canvas = new OffscreenCanvas(200, 100);
            canvas.getContext('2d').fillRect(50, 20, 30, 30);
            const blob = await canvas.convertToBlob({type: 'image/png'});
            await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]);
        }"""
    )
    visitor.at("#picture").get_by_label("Paste from clipboard").click()
    expect(visitor.at("#seen img")).not_to_have_attribute("src", before or "")
    visitor.at("#picture").get_by_label("Remove Image").click()
    expect(visitor.at("#seen img")).to_have_count(0)
    visitor.at("#picture").get_by_label("Capture from camera").click()
    visitor.at("#picture").get_by_text("Click to Access Webcam").click()
    visitor.page.wait_for_function("document.querySelector('#picture video')?.currentTime > 0")
    visitor.at("#picture").get_by_label("capture photo").click()
    expect(visitor.at("#seen img")).to_be_visible()


def test_what_an_answer_says_is_never_fetched_from_elsewhere(visitor: Visitor, engine: ChatEngine) -> None:
    Talker(engine, "![x](https://elsewhere.example/x.png) <img src='https://elsewhere.example/y.png'> <b>done</b>")
    visitor.ask(QUESTION)
    expect(visitor.answer).to_contain_text("done")
    visitor.at("#stop").click()
    assert becomes_idle(engine)
    del engine._generate
    expect(visitor.at("#chat .bot.message img")).to_have_count(0)


def test_a_phone_shows_one_column_and_nothing_sticks_out(come: Callable[..., Visitor], engine: ChatEngine) -> None:
    visitor = come(PHONE, has_touch=True, is_mobile=True).sees_a_picture().greedy()
    assert visitor.overflow() == []
    visitor.ask(QUESTION)
    visitor.has_been_answered(says(engine, 0))
    visitor.at("#question textarea").fill("What colour is the ring?")
    visitor.at("#compare").tap()
    expect(visitor.at("#side-qlip")).to_contain_text("in total")
    assert visitor.overflow() == []
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    cards = [
        visitor.at(f"#{name}-card").bounding_box()["x"] for name in ("picture", "talk", "compare", "sees", "settings")
    ]
    assert len(set(cards)) == 1


def test_the_chosen_colours_are_kept_and_otherwise_the_system_s_are_followed(come: Callable[..., Visitor]) -> None:
    visitor = come().sees_a_picture()
    switch = visitor.at("#appearance")

    def is_dark(dark: bool) -> None:
        expect(visitor.at("body.dark")).to_have_count(int(dark))
        colour = visitor.page.evaluate("getComputedStyle(document.querySelector('#sees-card')).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 < 100) == dark

    def reload() -> None:
        visitor.page.reload()
        visitor.sees_a_picture()

    is_dark(False)
    visitor.page.emulate_media(color_scheme="dark")
    is_dark(True)
    reload()
    is_dark(True)
    switch.click()
    is_dark(False)
    reload()
    is_dark(False)
    visitor.page.emulate_media(color_scheme="light")
    switch.click()
    is_dark(True)


def test_a_controller_s_models_are_offered_once_they_are_served_and_asked(
    come: Callable[..., Visitor], engine: ChatEngine
) -> None:
    dispatcher = Dispatcher(Registry(), timeouts=Timeouts(registration_wait=0))
    model_worker = worker_app.create_app(worker_app.ModelWorker(engine, [MODEL]))
    with (
        served(controller_app.create_app(dispatcher, on_loopback=True)) as address,
        served(model_worker) as worker,
        page_of(Demo(ControllerBackend(address, native_size=112)), PageText(examples=FILES), choose_model=True) as page,
    ):
        visitor = come(address=page).sees_a_picture().greedy()
        httpx.post(address + "/register_worker", json={"worker_name": worker}).raise_for_status()
        expect(visitor.at("#model input")).to_have_value("")
        visitor.at("#model input").focus()
        expect(visitor.page.get_by_role("option")).to_have_text([re.compile(MODEL)])
        visitor.at("#question textarea").focus()
        expect(visitor.at("#model input")).to_have_value(MODEL)
        expect(visitor.at("#note")).to_contain_text("Drawn for a vision tower of 112 pixels")
        assert len({label.bounding_box()["y"] for label in visitor.at("#view label").all()}) == 1, "three in one row"
        visitor.ask(QUESTION)
        settings = {"alpha": 0.8, "max_tokens": 1152}
        visitor.has_been_answered(says(engine, 0, enabled=True, **settings))
        expect(visitor.at("#spent strong").first).to_have_text(str(visitor.tokens))
        visitor.leave()
