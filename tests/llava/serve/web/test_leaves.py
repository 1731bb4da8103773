"""What a visitor learns of single leaves: their size, and their share in the last answer; by pointer and keyboard."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from html import unescape
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from llava.serve.engine import ChatEngine
from llava.serve.engine.params import QLIPOptions
from llava.serve.web.backend import EngineBackend
from llava.serve.web.controller_client import ControllerBackend
from llava.serve.web.controls import CLIP, QLIP
from llava.serve.web.handlers import Demo
from llava.serve.web.layout import PageText
from llava.serve.web.leaf_map import leaf_map
from llava.serve.web.session import Session
from llava.serve.web.views import ANSWER, LINES, OUTDATED, PICTURE, VIEWS
from tests.llava.serve.openai.serving import QUESTION, picture
from tests.llava.serve.web.clients import ALPHA, BUDGET, FIRST, controls, count, request
from tests.llava.serve.web.pages import PHONE, Visitor, needs_chromium, page_of

LINE = "#leaf"


@pytest.fixture(scope="module")
def url(demo: Demo) -> Iterator[str]:
    with page_of(demo, PageText(examples=[FIRST])) as url:
        yield url


def known(html: str) -> Any:
    """What the page's script reads."""
    return json.loads(unescape(re.search(r'data-leaves="([^"]*)"', html)[1]))


def test_leaves_are_listed_with_their_size_in_the_picture(engine: ChatEngine) -> None:
    leaves = EngineBackend(engine).prepare(picture(), QLIPOptions(max_tokens=96)).leaves
    data = known(leaf_map(leaves, picture().size))
    assert data["leaves"] == leaves.boxes.tolist() and data["shares"] is None
    assert [side * cells for side, cells in zip(data["cell"], reversed(data["grid"]), strict=True)] == [448, 448]
    assert leaf_map(None, (10, 10)) == ""


def test_the_last_answer_is_explained_as_its_picture_was_cut(engine: ChatEngine, demo: Demo) -> None:
    options = QLIPOptions(enabled=True, alpha=0.8, max_tokens=128, budget="score")
    before, session = Session(picture()), Session(picture()).with_answer(QUESTION, "a ring", options)
    view, plain, about = demo.set_view(request("a"), before, ANSWER, *controls())
    assert view == ANSWER and known(about)["shares"] is None
    _, heat, about = demo.set_view(request("a"), session, ANSWER, *controls(mode=CLIP))  # set since
    with Image.open(plain) as one, Image.open(heat) as other:
        assert one.size == other.size
        assert np.abs(np.asarray(one.convert("RGB")).astype(int) - np.asarray(other.convert("RGB"))).max() > 60
    shares = np.array(known(about)["shares"], dtype=float)
    expected = engine.explain(QUESTION, [picture()], "a ring", qlip=options).images[0].weights
    assert np.abs(shares / 100 - expected.numpy()).max() < 0.001
    assert count(about) == len(shares)
    assert OUTDATED in about, "the controls seem to do nothing"
    assert OUTDATED not in demo.draw(session, *controls(budget=128), ANSWER)[1]
    assert OUTDATED not in demo.draw(session, *controls(mode=CLIP), LINES)[1]
    with_clip = Session(picture()).with_answer(QUESTION, "a ring", QLIPOptions(enabled=False))
    squares = known(demo.draw(with_clip, *controls(), ANSWER)[1])
    assert squares["grid"] == [8, 8] and squares["frame"] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("mode", "options"),
    [(CLIP, QLIPOptions(enabled=False)), (QLIP, QLIPOptions(True, ALPHA, BUDGET, budget="score"))],
)
def test_an_answer_keeps_the_settings_that_it_was_given_with(demo: Demo, mode: str, options: QLIPOptions) -> None:
    async def ask() -> Session:
        steps = demo.ask(request(mode), Session(picture()), 1, QUESTION, *controls(mode, length=2))
        return [session async for session, *_ in steps][-1]

    assert asyncio.run(ask()).exchanges[-1].options == options


def test_an_answer_is_drawn_again_only_where_it_is_shown(demo: Demo) -> None:
    session = Session(picture()).with_answer(QUESTION, "a ring")
    visitor = request("a")
    assert all(part == gr.skip() for part in demo.draw_answer(visitor, session, *controls(), LINES))
    assert known(demo.draw_answer(visitor, session, *controls(), ANSWER)[1])["shares"]


def test_a_controller_offers_no_explanations() -> None:
    demo = Demo(ControllerBackend("http://127.0.0.1:9"))
    assert demo.views == VIEWS
    with pytest.raises(gr.Error, match="it must be one of Picture"):
        demo.set_view(request("a"), Session(picture()), ANSWER, *controls())


def name_of(visitor: Visitor, view: str) -> Any:
    return visitor.page.locator("#view label", has_text=view)


@needs_chromium
def test_the_leaf_under_pointer_tap_or_arrow_keys_is_described(come: Callable[..., Visitor]) -> None:
    visitor = come().sees_a_picture().greedy()
    image = visitor.at("#seen img")
    image.hover(position={"x": 8, "y": 8})
    expect(visitor.at(LINE)).to_have_text(re.compile(r"^56 × 56 px, 1 of \d+ tokens$"))
    outline = visitor.at("#leaf-outline").bounding_box()
    assert outline["width"] == pytest.approx(image.bounding_box()["height"] / 8, abs=2)
    image.focus()
    visitor.page.keyboard.press("ArrowRight")
    assert visitor.at("#leaf-outline").bounding_box()["x"] == pytest.approx(outline["x"] + outline["width"], abs=2)

    visitor.ask(QUESTION)
    expect(visitor.at("#spent")).to_contain_text("in total")
    name_of(visitor, ANSWER).click()
    expect(visitor.at(LINE)).to_have_attribute("data-leaves", re.compile('"shares":\\['))
    expect(visitor.at("#leaf-outline")).to_have_count(0)
    visitor.page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    image.click(position={"x": 60, "y": 60})
    expect(visitor.at(LINE)).to_have_text(re.compile(r"px, 1 of \d+ tokens, [\d.]+ % of the answer$"))
    assert visitor.overflow() == []
    name_of(visitor, PICTURE).click()
    expect(visitor.at(LINE)).to_have_attribute("data-leaves", re.compile('"shares":null'))
