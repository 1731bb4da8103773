"""What a visitor learns of single leaves by pointer, tap and keyboard."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import expect

from llava.serve.web.views import ANSWER, LINES
from tests.llava.serve.openai.serving import QUESTION
from tests.llava.serve.web.pages import PHONE, Visitor, needs_chromium

LINE = "#leaf"

pytestmark = needs_chromium


def name_of(visitor: Visitor, view: str) -> Any:
    return visitor.page.locator("#view label", has_text=view)


def test_the_leaf_under_pointer_tap_or_arrow_keys_is_described(visitor: Visitor) -> None:
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
    visitor.resize(PHONE)
    image.click(position={"x": 60, "y": 60})
    expect(visitor.at(LINE)).to_have_text(re.compile(r"px, 1 of \d+ tokens, [\d.]+ % of the answer$"))
    assert visitor.overflow() == []
    name_of(visitor, LINES).click()
    expect(visitor.at(LINE)).to_have_attribute("data-leaves", re.compile('"shares":null'))
