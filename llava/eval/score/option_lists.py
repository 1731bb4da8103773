"""Finds the options that a question lists: a letter and a text on each line, or all of them on one line.

A list that is overlooked turns right answers into wrong ones, so that common forms are read. Text that only mentions
letters ("by A. Smith and B. Jones", "Is the car (A) behind the bus (B)?") is no list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

LETTER_ONLY = {
    "en": "Answer with the option's letter from the given choices directly.",
    "cn": "请直接回答选项字母。",
}
"""Language -> what follows a multiple-choice question."""

HEADING = re.compile(r"\b(?i:options|choices)(?:\s+(?i:are|were|given))*\s*[:=：]")
"""Before a list of options."""

_BLANK = r"[^\S\n]"
_MARK = r"[).:、．：）]"
_BOLD = r"(?:\*\*|__)"
_BELOW_HEADING = re.compile(rf"{HEADING.pattern}{_BOLD}?\s*")


def _item_pattern(letter: str) -> re.Pattern[str]:
    """Builds the pattern of an option on its own line: "A. cat", "(A) cat", "- A) cat", "**A.** cat", "A." alone."""
    marks = rf"(?:{_MARK}{{1,2}}{_BOLD}?|{_BOLD}{_MARK})"
    return re.compile(rf"^{_BLANK}*(?:[-*+•]{_BLANK}+)?({_BOLD}?)[(（]?{letter}{marks}(.*)$", re.MULTILINE)


_UPPER = _item_pattern("([A-Z])")
_LOWER = _item_pattern(rf"([a-z])(?={_MARK}+{_BOLD}?(?:\s|\Z))")  # not "a.m."

# On one line, "(A)" must begin the line or follow the question's end, and "A." must follow a heading that begins its
# sentence, unlike that of "How many options: A. Smith".
_BRACKETED_START = re.compile(rf"(?:^|[:?.!;：？。！；]){_BLANK}*(?=[(（]A[)）])", re.MULTILINE)
_BRACKETED = re.compile(r"[(（]([A-Z])[)）]")
_BEFORE_HEADING = r"\b(?i:the|these|following|answer|possible|available|given|from)"
_HEADED_START = re.compile(
    rf"(?:^|[,:?.!;，：？。！；]|{_BEFORE_HEADING}){_BLANK}*{_BOLD}?{_BELOW_HEADING.pattern}(?=A{_MARK})", re.MULTILINE
)
_HEADED = re.compile(rf"(?<!\w)([A-Z]){_MARK}(?=\s)")

_OWN_INSTRUCTION = re.compile("|".join(map(re.escape, LETTER_ONLY.values())))
_INSTRUCTION = re.compile(
    rf"{_OWN_INSTRUCTION.pattern}|(?<=[.?!。！？])\s*(?:(?:Please|Answer|Choose|Select|Pick|Respond|Reply)\b|请)"
)
"""Begins the text that follows the last option on its line."""
_SENTENCE_END = re.compile(r"(?<![.?!])[.?!]+[\"'”’)]?(?=\s|\Z)|[。？！]+|\n")
_BETWEEN = " \t\r,;，；、"
_JOINT = re.compile(r"(?:(?:[\s,;]|\A)(?:or|and)|[或和])\Z")
"""Between two options on one line."""

_WIDEST_GAP = 2  # letters; "I. e." after "B. dog" is no option


class _List(NamedTuple):
    """A list in a question."""

    start: int
    last: int
    """Position of the last option's letter."""
    texts: list[str]
    whole: bool
    """Whether no letter is left out: "A", "B", "D"."""


def find_listed_options(question: str) -> dict[str, str]:
    """Finds the options that a question lists, by upper-case letter; {} unless it lists two or more from A on.

    Lists are lines with upper-case or with lower-case letters, and several options to a line: "(A) cat (B) dog" at a
    line's start or after the question, "A. cat B. dog" after "Options:". A list with several options to a line counts
    only where no later sentence ends in "?".

    Of several lists, the last one after "Options:" or "Choices:" counts, or else the last one. Other lines are passed
    over, also those that begin with another letter ("Q: ..."), but {} is found where up to two letters are left out of
    the list that counts ("A.", "B.", "D."). An option on its own line may be empty.
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


def _find_list(question: str) -> tuple[int, dict[str, str]]:
    """Finds where the list that counts begins, and its options."""
    lists = [*_find_lines(question, _UPPER), *_find_lines(question, _LOWER)]
    known = {found.start for found in lists if found.whole}  # lines "(A) ..." look like options on one line as well
    for start, marker in ((_BRACKETED_START, _BRACKETED), (_HEADED_START, _HEADED)):
        lists += [found for found in _find_inline(question, start, marker) if found.start not in known]
    headed = {heading.end() for heading in _BELOW_HEADING.finditer(question)}
    found = max(lists, key=lambda found: (found.start in headed, found.last, found.whole), default=None)
    if found is None or not found.whole:
        return len(question), {}
    return found.start, {_letter(index): text for index, text in enumerate(found.texts)}


def _find_lines(question: str, pattern: re.Pattern[str]) -> list[_List]:
    """Finds the lists with an option on each line; each line with an A starts another."""
    runs: list[list[re.Match[str]]] = []
    for match in pattern.finditer(question):
        if match[2].upper() == "A":
            runs.append([])
        if runs:
            runs[-1].append(match)
    lists = [_read_lines(run) for run in runs]
    return [found for found in lists if len(found.texts) > 1]


def _read_lines(lines: Sequence[re.Match[str]]) -> _List:
    """Reads a list from its lines, the first of which has an A, and lines that only look like options."""
    items: list[re.Match[str]] = []
    whole = True
    for line in lines:
        if line[2].upper() == _letter(len(items)):
            items.append(line)
        elif _skips_letters(line, len(items)):
            whole = whole and _form(line) not in map(_form, items[:1] + items[-1:])
    start = lines[0].end() - len(lines[0][0].lstrip())
    return _List(start, items[-1].start(2), [_read_line(item) for item in items], whole)


def _read_line(line: re.Match[str]) -> str:
    """Reads the text of an option on its own line."""
    bold, _, text = line.groups()
    text = _cut_instruction(text, _OWN_INSTRUCTION).strip()
    return text.removesuffix(bold).rstrip() if bold else text


def _form(line: re.Match[str]) -> tuple[str, bool]:
    """What surrounds the letter of an option, and whether a blank follows."""
    marker = line[0].removesuffix(line[3]).strip()
    return marker.replace(line[2], "", 1), line[3][:1].isspace()


def _find_inline(question: str, start: re.Pattern[str], marker: re.Pattern[str]) -> Iterator[_List]:
    """Finds the lists with several options to a line that no question follows; each option must have a text."""
    starts = [begin.end() for begin in start.finditer(question)]
    last_question = _find_last_question(question) if starts else 0
    ends = [*starts[1:], len(question)] if starts else []
    for begin, end in zip(starts, ends, strict=True):
        markers, whole = _read_markers(marker.finditer(question, begin))
        if len(markers) < 2 or markers[-1].end() < last_question:
            continue
        texts = _read_inline(question, markers, max(end, markers[-1].end()))
        if all(re.search(r"\w", text) for text in texts):
            yield _List(begin, markers[-1].start(1), texts, whole)


def _find_last_question(question: str) -> int:
    """Finds where the last sentence that ends in "?" begins; 0 if there is none."""
    start = found = 0
    for end in _SENTENCE_END.finditer(question):
        if re.search("[?？]", end[0]) and re.search(r"\w", question[start : end.start()]):
            found = start
        start = end.end()
    return found


def _read_markers(markers: Iterator[re.Match[str]]) -> tuple[list[re.Match[str]], bool]:
    """Picks the markers of A, B, ... in order, up to another A, and whether none is left out before a last one."""
    picked: list[re.Match[str]] = []
    whole = True
    for marker in markers:
        if marker[1] == _letter(len(picked)):
            picked.append(marker)
            whole = True
        elif marker[1] == "A":
            break
        elif _skips_letters(marker, len(picked), group=1):
            whole = False
    return picked, whole


def _read_inline(question: str, markers: Sequence[re.Match[str]], end: int) -> list[str]:
    """Reads the texts of options on one line."""
    ends = [marker.start() for marker in markers[1:]]
    texts = [question[own.end() : end].split("\n")[0] for own, end in zip(markers, [*ends, end], strict=True)]
    texts[-1] = _cut_instruction(texts[-1], _INSTRUCTION).rstrip(f"{_BETWEEN}.?!。？！")
    return [_strip_joint(text) for text in texts]


def _cut_instruction(text: str, pattern: re.Pattern[str]) -> str:
    """Cuts an instruction, and what follows it, off an option's text."""
    for match in pattern.finditer(text):
        if re.search(r"\w", text[: match.start()]):
            return text[: match.start()]
    return text


def _strip_joint(text: str) -> str:
    """Strips blanks and what joins an option to the next one: commas, "or"."""
    return _JOINT.sub("", text.strip(_BETWEEN)).rstrip(_BETWEEN)


def _skips_letters(match: re.Match[str], count: int, group: int = 2) -> bool:
    """Whether an option's letter leaves out some after the first `count` letters."""
    return 0 < ord(match[group].upper()) - ord(_letter(count)) <= _WIDEST_GAP


def _letter(index: int) -> str:
    return chr(ord("A") + index)
