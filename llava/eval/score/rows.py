"""Reads files of questions, answers and annotations: JSON lines and JSON; tables are read by `tables`.

Every error names the file and what is wrong in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.text import check_encodable

Row = dict[str, Any]
Key = tuple[str, ...]
"""Identifies a question: one or more fields of its row, as text."""

TEXTS = frozenset({"answer", "category", "data_type", "image", "label", "prompt", "question", "source", "task", "text"})
"""Fields that hold text, in every file of questions, answers and annotations."""


def is_question(row: Row) -> bool:
    """Whether a row with a text is a question of LLaVA's files, and not an answer to one."""
    return "image" in row and not row.keys() & {"prompt", "answer_id", "model_id"}


def read_text(path: Path) -> str:
    """Reads a text file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: it is in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def decode_json(text: str) -> Any:
    """Decodes JSON; NaN and Infinity, by which pandas fills gaps and Python writes them, are null.

    Raises:
        json.JSONDecodeError: it is not JSON.
    """
    return json.loads(text, parse_constant=lambda name: None)


def id_text(value: Any) -> str:
    """Formats an id, or a number that is an answer, as text; 1.0, as tables with gaps have it, is 1."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def read_json_lines(path: Path) -> list[tuple[int, Row]]:
    """Reads the objects of a file of JSON lines, each with its line number; only a line feed ends a line.

    Raises:
        ValueError: a line is not a JSON object.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = decode_json(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number} is not JSON: {error.msg}") from None
        check_object(f"{path}:{number}", row)
        rows.append((number, row))
    return rows


def read_json(path: Path, kind: type) -> Any:
    """Reads a JSON file that holds a `kind` (dict or list).

    Raises:
        ValueError: it is not JSON, or of another kind.
    """
    try:
        content = decode_json(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno} is not JSON: {error.msg}") from None
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds a {type(content).__name__}; it must be a {kind.__name__}")
    return content


def read_labelled(path: Path, fields: Sequence[str], key: Sequence[str] = ("question_id",)) -> dict[Key, Row]:
    """Reads a file of JSON lines by `key`; every row must have the key's fields and `fields`.

    Raises:
        ValueError: a field is missing or not text, two rows have the same key, or there are no rows.
    """
    return index_rows(path, [(f"{path}:{number}", row) for number, row in read_json_lines(path)], fields, key)


def read_answers(path: Path, key: Sequence[str] = ("question_id",)) -> dict[Key, Row]:
    """Reads an answers file, `question_id, prompt, text, ...`, by `key`.

    Raises:
        ValueError: as `read_labelled` does, and if the file holds questions.
    """
    return index_rows(path, read_answer_rows(path), ("text",), key)


def read_answer_rows(path: Path) -> list[tuple[str, Row]]:
    """Reads the rows of an answers file with their places.

    Raises:
        ValueError: a row is a question: it has a text, too, which would be taken for the answer.
    """
    rows = [(f"{path}:{number}", row) for number, row in read_json_lines(path)]
    for place, row in rows:
        if is_question(row):
            raise ValueError(f"{place} is a question, not an answer; give the file of answers")
    return rows


def index_rows(
    path: Path, rows: Iterable[tuple[str, Row]], fields: Sequence[str], key: Sequence[str]
) -> dict[Key, Row]:
    """Maps keys to rows, which come with their places for error messages; raises as `read_labelled` does."""
    found: dict[Key, Row] = {}
    for place, row in rows:
        row = read_row(place, row, (*key, *fields))
        if empty := [field for field in key if row[field] is None]:
            raise ValueError(f"{place}: {empty[0]} is null or NaN; it must be text or a number")
        name = tuple(id_text(row[field]) for field in key)
        if name in found:
            raise ValueError(f"{place}: {format_key(name)} appears twice")
        found[name] = row
    if not found:
        raise ValueError(f"{path} holds no rows")
    return found


def read_row(place: str, row: Any, fields: Iterable[str]) -> Row:
    """Checks that a row has `fields`, and turns numbers in those of `TEXTS` into text.

    Raises:
        ValueError: it is not an object, lacks a field, or a field of `TEXTS` holds neither text nor a number, or a text
            that cannot be encoded.
    """
    fields = list(fields)
    check_object(place, row, fields)
    texts = {name: row[name] for name in fields if name in TEXTS and not isinstance(row[name], str)}
    for name in TEXTS.intersection(fields) - texts.keys():
        check_encodable(f"{place}: {name}", row[name])
    for name, value in texts.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            shown = "null or NaN" if value is None else repr(value)
            raise ValueError(f"{place}: {name} is {shown}; it must be text")
    return {**row, **{name: id_text(value) for name, value in texts.items()}}


def check_object(place: str, row: Any, fields: Iterable[str] = ()) -> None:
    """Raises ValueError unless a row is an object that has `fields`."""
    if not isinstance(row, dict):
        raise ValueError(f"{place}: a {type(row).__name__}; it must be an object")
    if missing := [name for name in dict.fromkeys(fields) if name not in row]:
        raise ValueError(f"{place}: the row has no {', '.join(missing)}")


def place_rows(path: Path, name: str, rows: Any) -> list[tuple[str, Row]]:
    """Gives each row of the list `name` in a JSON file its place.

    Raises:
        ValueError: there is no such list, or a row is not an object.
    """
    if not isinstance(rows, list):
        raise ValueError(f"{path}: {name} is a {type(rows).__name__}; it must be a list")
    places = [(f"{path}: {name}[{index}]", row) for index, row in enumerate(rows)]
    for place, row in places:
        check_object(place, row)
    return places


def find_texts(
    wanted: Iterable[Key], answers: Mapping[Key, Row], path: Path, what: str = "the answers to "
) -> list[str]:
    """Finds the answers' texts in the order of `wanted`.

    Args:
        wanted: the questions.
        answers: by question.
        path: the answers' file.
        what: what the file should hold for each question, for the error.

    Raises:
        ValueError: an answer is missing, with how many are.
    """
    return [row["text"] for row in find_answers(wanted, answers, path, what)]


def find_answers(
    wanted: Iterable[Key], answers: Mapping[Key, Row], path: Path, what: str = "the answers to "
) -> list[Row]:
    """Finds the answers in the order of `wanted`; arguments and errors are those of `find_texts`."""
    keys = list(wanted)
    if missing := [key for key in keys if key not in answers]:
        raise ValueError(
            f"{path} lacks {what}{len(missing)} of {len(keys)} questions, for example {format_key(missing[0])}"
        )
    return [answers[key] for key in keys]


def format_key(key: Key) -> str:
    """Formats a key for a message."""
    return " / ".join(map(repr, key))
