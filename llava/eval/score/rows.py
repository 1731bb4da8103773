"""Reads the files that questions, answers and annotations come in; every error names the file and what is wrong in it.

Knows the formats, JSON lines, JSON, tab-separated and Excel tables, and no benchmark.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

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


def read_sheet(path: Path) -> list[dict[str, str]]:
    """The rows of the first sheet of an Excel file with a header, all values as text; an empty cell is "".

    Raises:
        ImportError: openpyxl is not installed.
        ValueError: the file is no Excel file, or empty.
    """
    try:
        import openpyxl  # an extra
    except ImportError:
        raise ImportError(f'{path} is an Excel file; reading it takes openpyxl: pip install ".[eval]"') from None
    try:
        sheet = openpyxl.load_workbook(path, read_only=True).worksheets[0]
        lines = [[_cell(value) for value in line] for line in sheet.iter_rows(values_only=True)]
    except (BadZipFile, KeyError, openpyxl.utils.exceptions.InvalidFileException) as error:
        raise ValueError(f"{path} is no Excel file: {error}") from None
    if not lines:
        raise ValueError(f"{path} holds no rows")
    return [dict(zip(lines[0], line, strict=False)) for line in lines[1:]]


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


def texts_for(
    wanted: Iterable[Key], answers: Mapping[Key, Row], path: Path, what: str = "the answers to "
) -> list[str]:
    """The answers' texts in the order of `wanted`.

    Args:
        wanted: the questions.
        answers: by question.
        path: the file that they come from.
        what: what a question has in it, for the error.

    Raises:
        ValueError: an answer is missing, with how many are.
    """
    return [str(row["text"]) for row in rows_for(wanted, answers, path, what)]


def rows_for(wanted: Iterable[Key], answers: Mapping[Key, Row], path: Path, what: str = "the answers to ") -> list[Row]:
    """The answers in the order of `wanted`; arguments and errors as of `texts_for`."""
    keys = list(wanted)
    if missing := [key for key in keys if key not in answers]:
        raise ValueError(
            f"{path} lacks {what}{len(missing)} of {len(keys)} questions, for example {name_of(missing[0])}"
        )
    return [answers[key] for key in keys]


def _cell(value: Any) -> str:
    """A cell of a sheet as text; Excel keeps whole numbers as fractions, too."""
    if value is None:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def name_of(key: Key) -> str:
    """A key for people."""
    return " / ".join(map(repr, key))
