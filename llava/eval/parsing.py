"""Reads what a model means from what it says: the letter of an option, yes or no. Pure functions of text.

One place, so that every benchmark reads an answer in the same way. Knows no benchmark but for the two official rules of
yes and no, which differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# A letter with what people write around it: "B", "(B)", "B.", "[B]:", "**B**".
_WHOLE = re.compile(r"[\s(\[*]*([A-Za-z])[\s)\].:,*]*")
_LEADING = re.compile(r"[\s(\[*]*([A-Z])(?:[)\]]|[.:,](?=\s|$))")
# "A" before a blank and a word is the article, but for words that no article stands before.
_NO_NOUN = r"(?:and|or|nor|but|not|as|because|since|for|if|in|is|on|was|with|here|there|the)\b"
_ARTICLE = rf"A +(?!{_NO_NOUN})"
_DECLARED = re.compile(
    r"\b(?i:answer|option|choice)(?:\s+is|\s*:)+[\s(\[*]*"
    rf"(?!{_ARTICLE}[a-z])((?=[A-Z]\b|[a-z][\s)\].*]*\Z)[A-Za-z])"  # in lower case at the end only
)
_ALONE = re.compile(rf"(?<![\w'])(?!{_ARTICLE}[A-Za-z][a-z])([A-Z])(?![\w'])")
_LISTED = re.compile(r"^\s*\(?([A-Z])[).:]\s*(.+?)\s*$", re.MULTILINE)


def option_letter(text: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer to a multiple-choice question chooses.

    The first rule that speaks decides: the whole answer is a letter, in any case; it begins with one ("B. a cat",
    "(B) a cat"); it declares one ("the answer is B"); it is an option's text, but for a leading article; exactly one
    option's letter stands alone in it; exactly one option's text stands in it. "A" is no letter where it is an article.

    Args:
        text: What the model said.
        options: Upper-case letter -> text of the option, which may be "" where only letters are known.

    Returns:
        One of the letters; None if no rule speaks, or if it points outside the options.
    """
    if whole := _WHOLE.fullmatch(text):
        letter = whole[1].upper()
        return letter if letter in options else None
    for pattern in (_LEADING, _DECLARED):
        found = pattern.match(text) if pattern is _LEADING else pattern.search(text)
        if found and found[1].upper() in options:
            return found[1].upper()
    said = _plain(text)
    plain = {letter: _plain(option) for letter, option in options.items() if _plain(option)}
    for form in (str, _without_article):
        if equal := [letter for letter, option in plain.items() if form(option) == form(said)]:
            return equal[0] if len(equal) == 1 else None
    alone = {letter for letter in _ALONE.findall(text) if letter in options}
    if alone:
        return alone.pop() if len(alone) == 1 else None
    inside = [letter for letter, option in plain.items() if re.search(rf"(?<!\w){re.escape(option)}(?!\w)", said)]
    return inside[0] if len(inside) == 1 else None


def listed_options(question: str) -> dict[str, str]:
    """The options that a question lists, one a line as "(A) text" or "A. text"; none where it lists none."""
    return {letter: text for letter, text in _LISTED.findall(question)}


def letters(count: int) -> dict[str, str]:
    """The first `count` letters as options without text."""
    return {chr(ord("A") + index): "" for index in range(count)}


def pope_yes_no(text: str) -> str:
    """ "yes" or "no" by POPE's rule: "no" if "no", "No" or "not" is a word of the first sentence, else "yes"."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def mme_yes_no(text: str) -> str | None:
    """ "yes" or "no" by MME's rule, from the first four characters; None is neither, and never right."""
    start = text.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


def _plain(text: str) -> str:
    return " ".join(text.strip().strip(".").lower().split())


def _without_article(plain: str) -> str:
    return re.sub(r"^(?:an?|the) (?=\S)", "", plain)
