"""The web demo as people meet it: Chromium opens the page, looks and clicks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from llava.serve.engine import ChatEngine
from llava.serve.engine.params import QLIPOptions, Sampling
from llava.serve.web.backend import EngineBackend
from llava.serve.web.controller_client import ControllerBackend
from llava.serve.web.handlers import Demo
from llava.serve.web.page import PageText
from llava.serve.workers import controller_app, worker_app
from llava.serve.workers.dispatcher import Dispatcher, Timeouts
from llava.serve.workers.registry import Registry
from llava.utils import demo_picture_paths
from tests.llava.serve.openai.serving import (
    MODEL,
    QUESTION,
    Talker,
    becomes_idle,
    picture,
    served,
)
from tests.llava.serve.web.pages import PHONE, Visitor, needs_chromium, page_of

FILES = [str(path) for path in demo_picture_paths()]
GREEDY = Sampling(temperature=0, max_new_tokens=64)

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def url(engine: ChatEngine) -> Iterator[str]:
    with page_of(Demo(EngineBackend(engine)), PageText("A notice.", FILES, [QUESTION])) as url:
        yield url


def says(engine: ChatEngine, index: int, question: str = QUESTION, **options: Any) -> str:
    """The engine's own greedy answer about one of the demo's pictures."""
    options = options or {"enabled": True}
    answer = engine.submit(engine.question(question, 1), [picture(index)], GREEDY, QLIPOptions(**options))
    return "".join(answer).strip()


@pytest.fixture
def talker(engine: ChatEngine) -> Iterator[Talker]:
    """A model that says "a purple ring" and then nothing more until it is stopped."""
    yield Talker(engine, "a purple ring")
    del engine._generate


def test_a_picture_is_uploaded_asked_about_and_answered(come: Callable[..., Visitor], engine: ChatEngine) -> None:
    visitor = come().sees_a_picture().greedy()
    visitor.upload(FILES[1])
    visitor.ask(QUESTION)
    visitor.has_been_answered(says(engine, 1))
    expect(visitor.at("#chat .user.message")).to_have_text(QUESTION)
    expect(visitor.at("#question textarea")).to_have_value("")
    expect(visitor.at("#spent strong").first).to_have_text(visitor.at("#meter strong").inner_text())


def test_examples_are_a_click_away(come: Callable[..., Visitor], engine: ChatEngine) -> None:
    visitor = come().sees_a_picture().greedy()
    before = visitor.view
    visitor.at("#examples .gallery-item").nth(2).click()
    expect(visitor.at("#seen img")).not_to_have_attribute("src", before or "")
    visitor.page.get_by_label(f"Select example 1: {QUESTION}").click()
    visitor.has_been_answered(says(engine, 2))


def test_an_answer_is_shown_while_it_comes_and_can_be_stopped(
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
    expect(visitor.answer).to_have_text("a purple ring")
    visitor.at("#clear").click()
    expect(visitor.at("#chat .message")).to_have_count(0)
    assert becomes_idle(engine)
    assert [answer.finish_reason for answer in talker.answers] == ["cancelled"] * 2


def test_another_picture_ends_the_answer_about_the_old_one(
    come: Callable[..., Visitor], engine: ChatEngine, talker: Talker
) -> None:
    visitor = come().sees_a_picture()
    for change in (lambda: visitor.upload(FILES[1]), lambda: visitor.at("#examples .gallery-item").nth(2).click()):
        visitor.ask(QUESTION)
        expect(visitor.answer).to_have_text("a purple ring")
        change()
        assert becomes_idle(engine)
        expect(visitor.at("#chat .message")).to_have_count(0)
    assert [answer.finish_reason for answer in talker.answers] == ["cancelled"] * 2


def test_a_visitor_who_leaves_in_mid_answer_stops_it(
    come: Callable[..., Visitor], engine: ChatEngine, talker: Talker
) -> None:
    visitor = come().sees_a_picture()
    visitor.ask(QUESTION)
    expect(visitor.answer).to_have_text("a purple ring")
    visitor.page.close()
    assert becomes_idle(engine)
    assert [answer.finish_reason for answer in talker.answers] == ["cancelled"]


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


def test_a_comparison_shows_both_answers_with_tokens_and_times(
    come: Callable[..., Visitor], engine: ChatEngine
) -> None:
    visitor = come().sees_a_picture().greedy()
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


def test_an_answer_can_be_had_anew_and_the_conversation_cleared(
    come: Callable[..., Visitor], engine: ChatEngine
) -> None:
    visitor = come().sees_a_picture().greedy()
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


def test_a_file_that_is_no_picture_is_a_toast_that_says_what_to_do(
    come: Callable[..., Visitor], tmp_path: Path, engine: ChatEngine
) -> None:
    (tmp_path / "letter.png").write_text("Dear Sir")
    visitor = come().greedy().sees_a_picture()
    before = visitor.view
    visitor.at("#picture input[type=file]").first.set_input_files(str(tmp_path / "letter.png"))
    toast = visitor.page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("Not a readable image")
    expect(toast).to_contain_text("Choose another picture.")
    assert visitor.view == before
    visitor.ask(QUESTION)  # about the picture of before
    visitor.has_been_answered(says(engine, 0))


def test_two_visitors_see_their_own_pictures_and_answers(come: Callable[..., Visitor], engine: ChatEngine) -> None:
    one, other = come().sees_a_picture().greedy(), come().sees_a_picture().greedy()
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


def test_what_an_answer_says_is_never_fetched_from_elsewhere(come: Callable[..., Visitor], engine: ChatEngine) -> None:
    visitor = come().sees_a_picture()
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_visitor_s_colours_and_can_be_switched(come: Callable[..., Visitor], scheme: str) -> None:
    visitor = come(color_scheme=scheme).sees_a_picture()

    def brightness() -> int:
        colour = visitor.page.evaluate("getComputedStyle(document.querySelector('#sees-card')).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3])) // 3

    dark = scheme == "dark"
    assert (brightness() < 100) == dark
    visitor.at("#appearance").click()
    assert (brightness() < 100) != dark


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
        visitor.page.close()
