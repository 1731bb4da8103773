"""Generated parts between the marks of a page."""

from __future__ import annotations

import pytest

from scripts.bench.evidence.pages.fill import fill


def test_marks_are_filled_again_and_again():
    text = "before\n<!-- a: b -->\n<!-- end a: b -->\nafter\n"
    once = fill(text, {"a: b": "| 1 |"})
    assert once == "before\n<!-- a: b -->\n| 1 |\n<!-- end a: b -->\nafter\n"
    assert fill(once, {"a: b": "| 2 |"}) == once.replace("1", "2")
    with pytest.raises(ValueError, match="'a: b'.*c"):
        fill(text, {"c": ""})
