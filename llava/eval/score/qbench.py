"""Q-Bench's questions, "LLVisionQA", as they are released: a JSON list of objects.

An entry has `img_path`, `question`, `candidates` (the options' texts) and, in the development set, `correct_ans`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from llava.eval.score.parse import letters
from llava.eval.score.rows import Row, id_text, place_rows, read_json, read_row

CHOOSE: Mapping[str, str] = MappingProxyType(
    {"en": "Choose between one of the options as follows:", "zh": "在下列选项中选择一个:"}
)
"""LLaVA's instruction before the options, by language."""


def read_entries(path: Path) -> list[Row]:
    """Reads the entries of a question file; each gets its position as `question_id`, since they have none.

    Raises:
        ValueError: an entry lacks a field, or has another number of options than 2 to 26, or one that is no text.
    """
    entries = []
    for number, (place, row) in enumerate(place_rows(path, "the file", read_json(path, list))):
        row = read_row(place, row, ("img_path", "question", "candidates"))
        if not isinstance(row["img_path"], str) or not row["img_path"]:
            raise ValueError(f"{place}: img_path is {row['img_path']!r}; it must name a file")
        options = row["candidates"]
        if not isinstance(options, list) or not 2 <= len(options) <= 26:
            raise ValueError(f"{place}: candidates is {options!r}; it must be a list of 2 to 26 options")
        if odd := [option for option in options if not isinstance(option, str | int | float)]:
            raise ValueError(f"{place}: an option of candidates is {odd[0]!r}; it must be text")
        entries.append({"question_id": number, **row})
    if not entries:
        raise ValueError(f"{path} holds no questions")
    return entries


def list_options(entry: Row) -> dict[str, str]:
    """Lists the options' texts by their letters."""
    return {letter: id_text(text) for letter, text in zip(letters(26), entry["candidates"], strict=False)}


def make_prompt(entry: Row, language: str) -> str:
    """Makes the text that the model gets, as LLaVA's: the question, an instruction and the options, a line each."""
    options = [f"{letter}. {text}\n" for letter, text in list_options(entry).items()]
    return f"{entry['question']}\n{CHOOSE[language]}\n{''.join(options)}"


def find_right(place: str, entry: Row) -> str:
    """Finds the letter of the right option, which `correct_ans` names by its text, or by the letter.

    Raises:
        ValueError: it names none, or one text is that of two options.
    """
    right, options = read_row(place, entry, ("correct_ans",))["correct_ans"], list_options(entry)
    right = id_text(right).strip()
    found = [letter for letter, text in options.items() if text.strip() == right]
    if len(found) > 1:
        raise ValueError(f"{place}: correct_ans is {right!r}, the text of {', '.join(found)}")
    if found:
        return found[0]
    if (letter := right.strip("().").upper()) in options:
        return letter
    raise ValueError(f"{place}: correct_ans is {right!r}; it must be one of {', '.join(options.values())}")
