"""Reads the files that questions, answers and annotations come in; every error names the file and what is wrong in it.

Knows the formats, JSON lines, JSON and tab-separated tables, and no benchmark.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Key = tuple[str, ...]
"""What tells one question from another: one or more fields of its row, as text."""


def read_rows(path: Path) -> list[tuple[int, Row]]:
    """The objects of a file of JSON lines, each with the number of its line; only a line feed ends a line.

    Raises:
        ValueError: a line is no JSON object.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: no JSON: {error.msg}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: a {type(row).__name__}; it must be an object")
        rows.append((number, row))
    return rows


def read_json(path: Path, kind: type) -> Any:
    """The content of a JSON file, a `kind` (dict or list).

    Raises:
        ValueError: it is no JSON, or of another kind.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: no JSON: {error.msg}") from None
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds a {type(content).__name__}; it must be a {kind.__name__}")
    return content


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a tab-separated table with a header, all values as text; an empty cell is "".

    Raises:
        ValueError: the file is no table.
    """
    import pandas  # here, since it takes long to import and only tables need it

    try:
        frame = pandas.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError) as error:
        raise ValueError(f"{path} is no tab-separated table: {error}") from None
    return frame.to_dict("records")


def read_labelled(path: Path, fields: Sequence[str], key: Sequence[str] = ("question_id",)) -> dict[Key, Row]:
    """A file of JSON lines by `key`; every row must have the key's fields and `fields`.

    Raises:
        ValueError: a field is missing, two rows have the same key, or there are no rows.
    """
    return keyed(path, [(f"{path}:{number}", row) for number, row in read_rows(path)], fields, key)


def read_answers(path: Path, key: Sequence[str] = ("question_id",)) -> dict[Key, Row]:
    """An answers file, `question_id, prompt, text, ...`, by `key`; raises as `read_labelled`."""
    return read_labelled(path, ("text",), key)


def keyed(path: Path, rows: Iterable[tuple[str, Row]], fields: Sequence[str], key: Sequence[str]) -> dict[Key, Row]:
    """Rows, each with its place for error messages, by `key`; raises as `read_labelled`."""
    found: dict[Key, Row] = {}
    for place, row in rows:
        if missing := [name for name in dict.fromkeys((*key, *fields)) if name not in row]:
            raise ValueError(f"{place}: the row has no {', '.join(missing)}")
        name = tuple(str(row[field]) for field in key)
        if name in found:
            raise ValueError(f"{place}: {name_of(name)} is there a second time")
        found[name] = row
    if not found:
        raise ValueError(f"{path} holds no rows")
    return found


def texts_for(wanted: Iterable[Key], answers: Mapping[Key, Row], path: Path) -> list[str]:
    """The answers' texts in the order of `wanted`.

    Raises:
        ValueError: an answer is missing, with how many are.
    """
    return [str(row["text"]) for row in rows_for(wanted, answers, path)]


def rows_for(wanted: Iterable[Key], answers: Mapping[Key, Row], path: Path) -> list[Row]:
    """The answers in the order of `wanted`; raises as `texts_for`."""
    keys = list(wanted)
    if missing := [key for key in keys if key not in answers]:
        raise ValueError(
            f"{path} lacks the answers to {len(missing)} of {len(keys)} questions, for example {name_of(missing[0])}"
        )
    return [answers[key] for key in keys]


def name_of(key: Key) -> str:
    """A key for people."""
    return " / ".join(map(repr, key))
