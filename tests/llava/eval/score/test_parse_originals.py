"""The table of docs/EVALUATION.md that compares our reading of letters with the benchmarks' own rules is true.

The rules are stated here as their authors describe them, each in its own words.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llava.eval.score import parse
from llava.eval.score.parse import option_letter

DOCUMENT = (Path(__file__).parents[4] / "docs" / "EVALUATION.md").read_text(encoding="utf-8")
OPTIONS = {"A": "a red car", "B": "a blue bus", "C": "a dog", "D": "none of these"}


def table() -> list[list[str]]:
    """The rows of the table, cell by cell."""
    section = DOCUMENT.partition("### Letters by the benchmarks' own rules")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def science_qa(text: str) -> str:
    """A letter, a letter before ". ", or exactly one "The answer is X" with one more character after it."""
    if text in OPTIONS:
        return text
    if text[:1] in OPTIONS and text[1:3] == ". ":
        return text[0]
    declared = [found[1] for found in re.finditer("The answer is ([A-Z]).", text)]
    return declared[0] if len(declared) == 1 else "-"


def seed_bench(text: str) -> str:
    """The first character."""
    return text[0] if text[0] in OPTIONS else "-"


def mmbench(text: str) -> str:
    """One option's letter is a word of the answer, "A" only in answers of up to three words; else one option's text."""
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    found = [letter for letter in OPTIONS if letter in words]
    if len(found) == 1 and not ("A" in words and len(words) > 3):
        return found[0]
    inside = [letter for letter, option in OPTIONS.items() if option in text.lower()]
    return inside[0] if len(inside) == 1 else "-"


def test_the_table_has_its_rows() -> None:
    assert len(table()) == 14
    assert all(len(row) == 6 for row in table())


@pytest.mark.parametrize("row", table(), ids=lambda row: row[0])
def test_each_cell_of_the_table_is_what_the_rule_gives(row: list[str]) -> None:
    text, *letters, _ = row
    assert letters == [science_qa(text), seed_bench(text), mmbench(text), option_letter(text, OPTIONS) or "-"]


@pytest.mark.parametrize("letter", OPTIONS)
def test_all_rules_agree_on_the_answers_that_llava_gives(letter: str) -> None:
    for text in (letter, f"{letter}. {OPTIONS[letter]}"):
        assert {science_qa(text), seed_bench(text), mmbench(text), option_letter(text, OPTIONS)} == {letter}


def test_the_page_lists_the_rules_in_their_order() -> None:
    """As the function that applies them describes them."""
    section = DOCUMENT.partition("## How an answer is read")[2].partition("Otherwise it is wrong")[0]
    described = [
        [" ".join(rule.split()) for rule in re.findall(r"^ +[0-9]\. (.*(?:\n {7}.*)*)$", text, re.MULTILINE)]
        for text in (section, str(option_letter.__doc__))
    ]
    assert described[0] == described[1]
    assert len(described[0]) == len(parse._RULES)


@pytest.mark.parametrize(
    ("number", "said", "letter"),
    [
        (1, "option b", "B"),
        (2, "(B) a blue bus", "B"),
        (3, "A, B", None),
        (4, "I choose B, then", "B"),
        (5, "B. it is", "B"),
        (6, "Blue bus", "B"),
        (7, "as seen in B here", "B"),
        (8, "there is a blue bus", "B"),
    ],
)
def test_each_rule_decides_an_answer(number: int, said: str, letter: str | None) -> None:
    rules = [rule(parse._Answer(said, OPTIONS)) for rule in parse._RULES]
    assert [decision is not None for decision in rules][:number] == [False] * (number - 1) + [True]
    assert rules[number - 1] == (letter,)
    assert option_letter(said, OPTIONS) == letter
