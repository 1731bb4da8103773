"""Texts of options inside an answer: without decoration, and as patterns that match whole words and numbers."""

from __future__ import annotations

import re

# Chinese, Japanese and Korean have no blanks between words, so their characters do not join a letter to a word.
CJK = r"\u3005-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
WORD = rf"[^\W{CJK}]"
MINUS = "[-\u2212\u2013]"

# Letters, digits and signs of full width, as Chinese keyboards give them.
FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " "}


def bound_text(text: str) -> str:
    """Builds a pattern for a text that is not part of longer words or numbers: "25" is not in "0.25" or "-25".

    It is in "25.0" and "25:00", and in ranges and lists without blanks, so that these name several.
    """
    before = rf"(?<!{WORD})" if re.match(WORD, text) else ""
    after = rf"(?!{WORD})" if re.search(rf"{WORD}\Z", text) else ""
    if number := re.match(r"\d+", text):
        digits = len(number[0])
        before += rf"(?<!\A{MINUS})(?<![\s(=:]{MINUS})(?<!\A\.)(?<![\s($€£¥]\.)(?<!\d:)"
        before += ("" if digits == 4 else r"(?<!\d[./])") + (r"(?<!\d,)" if digits == 3 else "")  # a year ends a date
    if number := re.search(r"\d+\Z", text):
        after += r"(?!\.(?!0+(?!\d))\d)(?!:(?!00(?!\d))\d)(?!,\d{3}(?!\d))"
        after += "" if len(number[0]) == 4 else r"(?!/\d)"
    return before + re.escape(text) + after


def plain_text(text: str) -> str:
    """Writes a text in lower case with single blanks, without full width and dots around it."""
    return " ".join(strip_dots(text.translate(FULL_WIDTH)).lower().split())


def strip_dots(text: str) -> str:
    """Strips blanks, and dots that are not a number's: ".5" keeps its."""
    return re.sub(r"\A[.。]+(?!\d)", "", text.strip().rstrip(".。")).strip()


def drop_article(plain: str) -> str:
    """Removes a plain text's leading article."""
    return re.sub(r"^(?:an?|the) (?=\S)", "", plain)
