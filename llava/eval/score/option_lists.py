"""Finds the options that a question lists: a letter and a text on each line, or all of them on one line.

A list that is overlooked turns right answers into wrong ones, so that common forms are read. Text that only mentions
letters ("by A. Smith and B. Jones", "Is the car (A) behind the bus (B)?") is no list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

HEADING = re.compile(r"\b(?i:options|choices)(?:\s+(?i:are|were|given))*\s*[:=：]")
"""Before a list of options."""

_BLANK = r"[^\S\n]"
_MARK = r"[).:、．：）]"
_BOLD = r"(?:\*\*|__)"


def _item_pattern(letter: str) -> re.Pattern[str]:
    """Builds the pattern of an option on its own line: "A. cat", "(A) cat", "- A) cat", "**A.** cat", "A." alone."""
    marks = rf"(?:{_MARK}{{1,2}}{_BOLD}?|{_BOLD}{_MARK})"
    return re.compile(rf"^{_BLANK}*(?:[-*+•]{_BLANK}+)?({_BOLD}?)[(（]?{letter}{marks}(.*)$", re.MULTILINE)


_UPPER = _item_pattern("([A-Z])")
_LOWER = _item_pattern(rf"([a-z])(?={_MARK}+{_BOLD}?(?:\s|\Z))")  # not "a.m."

# On one line, "(A)" must begin the line or follow the question's end, and "A." must follow a heading.
_BRACKETED_START = re.compile(rf"(?:^|[:?.!;：？。！；]){_BLANK}*(?=[(（]A[)）])", re.MULTILINE)
_BRACKETED = re.compile(r"[(（]([A-Z])[)）]")
_HEADED_START = re.compile(rf"{HEADING.pattern}\s*(?=A{_MARK})")
_HEADED = re.compile(rf"(?<!\w)([A-Z]){_MARK}(?=\s)")
_INSTRUCTION = re.compile(r"(?<=[\s,;.?!，；。？])(?:Please|Answer|Choose|Select|Pick|Respond|Reply)\b")
"""Begins the text that follows the last option on its line."""
_BETWEEN = " \t\r,;，；、"
_JOINT = re.compile(r"(?:(?:[\s,;]|\A)(?:or|and)|[或和])\Z")
"""Between two options on one line."""

_Found = tuple[int, dict[str, str]]
"""Position of a list in its question, and its options."""


def find_listed_options(question: str) -> dict[str, str]:
    """Finds the options that a question lists, by upper-case letter; {} unless it lists two or more from A on.

    Lists are, in order of preference, lines with upper-case letters, lines with lower-case ones, and several options to
    a line: "(A) cat (B) dog" at a line's start or after the question, "A. cat B. dog" after "Options:". Of several
    lists of lines, the longest counts, and of equal ones the last. Other lines are passed over, also those that begin
    with another letter ("Q: ..."). An option on its own line may be empty.
    """
    return split_options(question)[1]


def split_options(question: str) -> tuple[str, dict[str, str]]:
    """Splits a question that lists options into the text before the list, without a heading, and its options."""
    start, options = _find_list(question)
    before = question[:start].strip()
    headings = list(HEADING.finditer(before)) if options else []
    if headings and headings[-1].end() == len(before):
        before = before[: headings[-1].start()].rstrip()
    return before, options


def _find_list(question: str) -> _Found:
    for pattern in (_UPPER, _LOWER):
        if found := _find_lines(question, pattern):
            return found
    for start, marker in ((_BRACKETED_START, _BRACKETED), (_HEADED_START, _HEADED)):
        for begin in start.finditer(question):
            if found := _find_inline(question, begin.end(), marker):
                return found
    return len(question), {}


def _find_lines(question: str, pattern: re.Pattern[str]) -> _Found | None:
    """Finds the longest run of lines A, B, ...; each line with an A starts another."""
    runs: list[tuple[int, list[str]]] = []
    for match in pattern.finditer(question):
        bold, letter, text = match.groups()
        text = text.strip()
        if letter.upper() == "A":
            runs.append((match.start(), []))
        if runs and letter.upper() == _letter(len(runs[-1][1])):
            runs[-1][1].append(text.removesuffix(bold).rstrip() if bold else text)
    runs = [run for run in runs if len(run[1]) > 1]
    if not runs:
        return None
    start, texts = max(reversed(runs), key=lambda run: len(run[1]))
    return start, _by_letter(texts)


def _find_inline(question: str, start: int, marker: re.Pattern[str]) -> _Found | None:
    """Finds the options from a position on, each of which must have a text."""
    markers = list(_consecutive(marker.finditer(question, start)))
    if len(markers) < 2:
        return None
    ends = [following.start() for following in markers[1:]] + [len(question)]
    texts: list[str] = []
    for own, end in zip(markers, ends, strict=True):
        text = question[own.end() : end].split("\n")[0]
        if end == len(question):
            text = _INSTRUCTION.split(text)[0].rstrip(f"{_BETWEEN}.?!。？")
        text = _strip_joint(text)
        if not re.search(r"\w", text):
            return None
        texts.append(text)
    return start, _by_letter(texts)


def _strip_joint(text: str) -> str:
    """Strips blanks and what joins an option to the next one: commas, "or"."""
    return _JOINT.sub("", text.strip(_BETWEEN)).rstrip(_BETWEEN)


def _consecutive(markers: Iterator[re.Match[str]]) -> Iterator[re.Match[str]]:
    """Passes on the markers of A, B, ... in order, up to another A, where another search begins."""
    count = 0
    for marker in markers:
        if marker[1] == _letter(count):
            count += 1
            yield marker
        elif marker[1] == "A":
            return


def _by_letter(texts: Sequence[str]) -> dict[str, str]:
    return {_letter(index): text for index, text in enumerate(texts)}


def _letter(index: int) -> str:
    return chr(ord("A") + index)
