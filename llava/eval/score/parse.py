"""Parses a model's answer: the letter of an option, or yes or no.

All benchmarks use these rules, so that an answer is read in the same way everywhere; POPE and MME have their own
official rules for yes and no.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from llava.eval.score.option_lists import HEADING
from llava.eval.score.option_texts import CJK, FULL_WIDTH, WORD, bound_text, drop_article, plain_text, strip_dots

# Decoration around a letter: "(B)", "**B**", "'B'", "【B】", "B."
_OPEN = r"[\s(\[{<*_\"'`“”‘’「『【《]{0,12}"  # bounded: a long run of brackets would take quadratic time
_CLOSE = r"[)\]}>*_\"'`“”‘’」』】》]{0,12}"
_AROUND = r"[\s()\[\]{}<>*_\"'`“”‘’「」『』【】《》.,:;!?。、]*"
# "A" before a blank and a word is the article, except before words that take none; "I" is the pronoun.
_NO_NOUN = r"(?i:and|or|nor|but|not|as|because|since|for|if|in|is|on|was|with|here|there|the)\b"
_ARTICLE = rf"(?:A +(?!{_NO_NOUN})[A-Za-z]{{2}}|I +[a-z])"
# Not a letter: part of a word, of an abbreviation ("D.C."), of "B's", "A-frame", "C++", "B&W" or "A型"; an article.
_BEHIND = rf"(?!{WORD}|'{WORD}|\.[A-Za-z]|-[a-z]|\+|&[A-Za-z]|[级型类组座超])"
_LETTER = rf"(?<!{WORD})(?<!{WORD}')(?<![A-Za-z]\.)(?!{_ARTICLE})[A-Z]{_BEHIND}"
_AND = r"(?:\s*[,，]\s*(?:and|or|nor)\s|\s+(?:and|or|nor)\s|\s*[/&、和或与及]|以及)"
_NAMED = r"(?i:(?:the\s+)?(?:options?|choices?|answers?|letters?)\s+)?"
_LETTERS = rf"{_OPEN}{_LETTER}{_CLOSE}(?:{_AND}\s*{_NAMED}{_OPEN}{_LETTER}{_CLOSE}){{0,25}}"
# "A, B" is a list where the next letter ends it or is followed by another one, not in "B, A is on the left".
_COMMA = rf"\s*[,;]\s*{_NAMED}{_OPEN}{_LETTER}{_CLOSE}(?=\s*(?:[,;.!]|\Z)|\n|\s+(?i:and|or)\s)"
_LIST = re.compile(rf"{_LETTER}{_CLOSE}(?:{_COMMA}|{_AND}\s*{_NAMED}{_OPEN}{_LETTER}{_CLOSE}){{1,25}}")

# Letters that the answer rules out: "not B", "instead of B", "A and C are wrong", "不是B", "A不正确".
_NOT = r"\b(?i:not|never|neither|nor|except|unlike|(?:rather|other)\s+than|instead\s+of"
_NOT += r"|cannot|\w+n['’]t)(?:\s+(?i:be|choose|pick|select))?"
_NOT_CJK = r"(?:不(?:可能|应该|应|会|能)?(?:是|选择|选)|并非|而非|排除|除了)\s*(?:选项|答案)?"
_WRONG = (
    r"(?:(?:all|both|also|clearly|simply|just)\s+)*(?:not(?!\s+(?:wrong|incorrect|false)\b)|wrong|incorrect|false|out)"
)
_FAILS = (
    rf"\s+(?i:(?:is|are|was|were|seems?|looks?)\s+{_WRONG}|(?:does|do|did|can|could|would)\s+not|cannot|\w+n['’]t)\b"
)
_FAILS_CJK = r"\s*(?:选项)?(?:都|均|也|是|就|明显|显然|肯定)*(?:错|没有|并非|不(?!应|选|是\W*[A-Z]))"
_RULED_OUT = re.compile(rf"(?:{_NOT}\s+{_NAMED}|{_NOT_CJK}){_LETTERS}|{_LETTERS}(?:{_FAILS}|{_FAILS_CJK})")
_GONE = "\0"
"""Replaces text that a rule must not read."""

# What declares the letter after it ("the answer to this is B", "I choose B", "故选B"), or before it ("B is correct").
_HEDGES = "that|it|the|is|are|be|but|rather|instead|definitely|probably|clearly|likely|most|option|choice|answer|letter"
_HEDGE = rf"(?i:(?:{_HEDGES})\s+){{0,6}}"
_SAID = r"(?:\b(?i:answer|option|choice)s?\b[^.;!?\n。；！？]{0,60}?(?:\b(?i:is|are|be)\b|[:=])[\s:=]*"
_SAID += r"|\b(?i:choose|chose|pick|select|go\s+with)\s+|\\boxed\s*\{\s*(?:\\text\s*\{)?"
_SAID += r"|(?:答案|选项|正确的?)[^.;!?\n。；！？]{0,20}?[是为:=]\s*|答案\s*|选(?:择|取)?(?:选项|(?!项))\s*)"
_DECLARED = (
    rf"{_SAID}{_GONE}?[\s,，]*{_HEDGE}{_OPEN}(?:({_LETTER})|(?<!{WORD})([a-z])(?={_AROUND}\Z)|(?<=\()([a-z])(?=\)))"
)
_RIGHT = r"(?i:\s+(?:is|seems|looks|must\s+be)\s+(?:(?:clearly|probably|definitely|the|most|therefore)\s+)*"
_RIGHT += r"(?:correct|right|true|best|accurate|answer)\b)"
_RIGHT += r"|\s*(?:选项)?(?:才)?(?:是|为)?(?:最)?(?:正确|正解|答案|合适|对(?![应于比面着]))"
_DECLARATION = re.compile(rf"{_DECLARED}|({_LETTER})(?={_CLOSE}(?:{_RIGHT}))")

# What a whole answer may call its letter, which is then no article: "Option a", unlike "answer a question".
_TITLE = r"(?i:(?:the\s+)?(?:(?:correct|right|best|final)\s+)?(?:options?|choices?|answers?|letters?)\b)"
_WHOLE = re.compile(rf"{_AROUND}([A-Za-z]){_AROUND}")
_TITLED = re.compile(rf"{_AROUND}{_TITLE}{_AROUND}([A-Za-z]){_AROUND}")
# "(B) text", where the text may be a letter itself.
_RESTATED = re.compile(rf"{_OPEN}(?:{_TITLE}{_OPEN})?([A-Z])(?=[^\w\s]){_CLOSE}[.:]?{_CLOSE}\s+(.+)", re.DOTALL)
_SEVERAL = re.compile(rf"{_OPEN}([A-Z]){_CLOSE}(?:(?:\s*[,;]\s*|\s+){_OPEN}[A-Z]{_CLOSE})+[.\s]*")
_LEADING = re.compile(
    rf"{_OPEN}(?:({_LETTER})(?:[)\]}}】]|{_CLOSE}(?:[.,:;](?=[\s{CJK}]|$)|[。，、：]|\s+[-–—]\s|[ \t]*(?:\n|\Z)))"
    rf"|(?:{_TITLE}{_OPEN})?([a-z])\)(?!{_FAILS}))"
)
_ALONE = re.compile(_LETTER)
_DENIED = re.compile(r"(?:\b(?:not|no|without|neither|nor)|n['’]t)\s+(?:(?:an?|the)\s+)?\Z|(?:不是|没有|并非|而非)\Z")


def option_letter(text: str, options: Mapping[str, str]) -> str | None:
    """Finds the option that an answer to a multiple-choice question chooses.

    Letters that the answer rules out ("not B", "A is wrong") do not count, nor do those inside an option's text
    ("vitamin C"), nor "A" where it is an article. The first rule that applies decides:

    1. The whole answer is a letter, in any case and decoration ("option b"), or an option's text that is a letter.
    2. It is a letter with its option's text ("(B) a cat").
    3. It is several letters ("A, B"), which choose none.
    4. It declares a letter ("the answer is B", "I choose B", "B is correct", "答案是B"); the last one counts.
    5. It begins with a letter ("B. a cat", "B" on a separate line), and does not repeat several options with their
       letters ("A. a cat B. a dog"), or its last line is one.
    6. It is an option's text, except for a leading article.
    7. Exactly one option's letter is alone in it.
    8. Exactly one option's text is in it.

    Args:
        text: The model's answer.
        options: Upper-case letter -> text of the option, "" where only the letter is known.

    Returns:
        One of the letters; None if no rule applies, or if the answer is another letter.
    """
    answer = _Answer(re.sub(r"\s*\n\s*", "\n", re.sub(r"[^\S\n]+", " ", text.translate(FULL_WIDTH))), options)
    for rule in _RULES:
        if (decision := rule(answer)) is not None:
            return decision[0]
    return None


def letters(count: int) -> dict[str, str]:
    """Makes the first `count` letters options without text."""
    return {chr(ord("A") + index): "" for index in range(count)}


def read_pope_answer(text: str) -> str:
    """Reads an answer by POPE's rule: "no" if "no", "No" or "not" is a word of the first sentence, else "yes"."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def read_mme_answer(text: str) -> str | None:
    """Reads "yes" or "no" by MME's rule, from the first four characters; None is neither, and always wrong."""
    start = text.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


@dataclass(frozen=True)
class _Answer:
    """An answer with single blanks, and what the rules read of it."""

    text: str
    options: Mapping[str, str]

    @cached_property
    def texts(self) -> dict[str, str]:
        """Letter -> plain text, of the options whose text is known."""
        return {letter: plain_text(option) for letter, option in self.options.items() if plain_text(option)}

    @cached_property
    def said(self) -> str:
        """The plain text."""
        return plain_text(self.text)

    @cached_property
    def left(self) -> str:
        """The text without letters that it rules out, or that are a part of an option's text."""
        return _RULED_OUT.sub(_GONE, _without_texts(self.text, self.options))

    @cached_property
    def single(self) -> str:
        """`left` without letters that are named together."""
        return _without_ties(self.left, self.options)

    @cached_property
    def is_list(self) -> bool:
        """Whether its first line, or all of it, is the options from the first on, two or more: "A. red B. blue"."""
        items = [
            rf"\s*[(\[*]{{0,3}}{letter}[)\].:*]{{1,3}}\s*{bound_text(option)}[*.,;]*"
            for letter, option in self.texts.items()
        ]
        if len(items) < 2:
            return False
        rest = "".join(f"(?:{item}" for item in items[2:]) + ")?" * len(items[2:])
        pattern = rf"\W*(?:{HEADING.pattern})?{items[0]}{items[1]}{rest}\s*(?:\n|\Z)"
        return re.match(pattern, self.text, re.IGNORECASE) is not None


_Decision = tuple[str | None] | None
"""What a rule decides: a letter, or that none is chosen, in a tuple; None if the rule does not apply."""


def _read_whole(answer: _Answer) -> _Decision:
    titled = None if answer.said in answer.texts.values() else _TITLED.fullmatch(answer.text)
    if not (whole := _WHOLE.fullmatch(answer.text) or titled):
        return None
    if (letter := whole[1].upper()) in answer.options:
        return (letter,)
    return (_only([name for name, option in answer.texts.items() if option == letter.lower()]),)  # "O" of H, O, N, X


def _read_restated(answer: _Answer) -> _Decision:
    restated = _RESTATED.fullmatch(answer.text)
    return (restated[1],) if restated and answer.texts.get(restated[1]) == plain_text(restated[2]) else None


def _read_several(answer: _Answer) -> _Decision:
    if not _SEVERAL.fullmatch(answer.text):
        return None
    letter = _only(list(dict.fromkeys(re.findall("[A-Z]", answer.text))))  # "B, B" is one
    return (letter if letter in answer.options else None,)


def _read_declared(answer: _Answer) -> _Decision:
    """Finds the letter of the last declaration that names an option."""
    text = HEADING.sub(_GONE, answer.single) if answer.is_list else answer.single
    found = [match[match.lastindex or 0].upper() for match in _DECLARATION.finditer(text)]
    return next(((letter,) for letter in reversed(found) if letter in answer.options), None)


def _read_ends(answer: _Answer) -> _Decision:
    """Finds the letter that the text begins with, unless it is a list of options, or that is its last line."""
    last = answer.single.strip().rpartition("\n")[2]
    start, end, titled = _LEADING.match(answer.single), _WHOLE.fullmatch(last), _TITLED.fullmatch(last)
    found = [start[start.lastindex or 0].upper() if start and not answer.is_list else "", end[1] if end else ""]
    found.append(titled[1].upper() if titled else "")
    return next(((letter,) for letter in found if letter in answer.options), None)


def _read_equal_text(answer: _Answer) -> _Decision:
    for form in (str, drop_article):
        if equal := [letter for letter, option in answer.texts.items() if form(option) == form(answer.said)]:
            return (_only(equal),)
    return None


def _read_alone(answer: _Answer) -> _Decision:
    alone = {letter for letter in _ALONE.findall(answer.left) if letter in answer.options}
    return (_only(list(alone)),) if alone else None


def _read_texts_inside(answer: _Answer) -> _Decision:
    return (_only(list(_texts_inside(answer.said, answer.texts))),)


_RULES: tuple[Callable[[_Answer], _Decision], ...] = (
    _read_whole,
    _read_restated,
    _read_several,
    _read_declared,
    _read_ends,
    _read_equal_text,
    _read_alone,
    _read_texts_inside,
)
"""In the order of `option_letter`'s list."""


def _only(letters: Sequence[str]) -> str | None:
    return letters[0] if len(letters) == 1 else None


def _without_ties(text: str, options: Mapping[str, str]) -> str:
    """Removes letters of options that are named together: "A or B"."""

    def untie(match: re.Match[str]) -> str:
        several = len(set(_ALONE.findall(match[0])) & set(options)) > 1
        return _ALONE.sub(_GONE, match[0]) if several else match[0]

    return _LIST.sub(untie, text)


def _without_texts(text: str, options: Mapping[str, str]) -> str:
    """Removes options' texts that hold a single letter, such as "vitamin C" or "A and B"."""
    for option in sorted(options.values(), key=len, reverse=True):
        option = strip_dots(option.translate(FULL_WIDTH))
        if len(option) > 1 and _ALONE.search(option):
            text = re.sub(bound_text(option), _GONE, text, flags=re.IGNORECASE)
    return text


def _texts_inside(said: str, texts: Mapping[str, str]) -> set[str]:
    """Finds the options whose text is in the answer and not denied; a longer text hides shorter ones inside it."""
    inside = set()
    for letter, option in sorted(texts.items(), key=lambda item: -len(item[1])):
        same = [other for other, text in texts.items() if text == option]
        found = [match for match in re.finditer(bound_text(option), said)]
        if any(not _DENIED.search(said[: match.start()]) for match in found):
            inside.update(same)
        if letter == same[-1]:
            said = re.sub(bound_text(option), _GONE, said)
    return inside
