"""The page: its heading, and what it loads."""

from __future__ import annotations

import re

import httpx
import pytest

from llava.serve.web.handlers import Demo
from llava.serve.web.page import PageText, build_page


@pytest.mark.parametrize("heading", [True, False])
def test_a_page_inside_another_has_no_heading(demo: Demo, heading: bool) -> None:
    blocks = build_page(demo, PageText("A notice.", heading=heading)).blocks.values()
    (head,) = (block for block in blocks if getattr(block, "elem_id", None) == "head")
    assert head.visible == heading


def test_the_page_asks_nothing_of_other_hosts(page_url: str) -> None:
    page = httpx.get(page_url)
    assert re.findall(r"<(?:script|link)[^>]+(?:src|href)=\"(?:https?:)?//(?!127\.0\.0\.1)[^\"]+", page.text) == []
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["referrer-policy"] == "no-referrer"
