"""The file of an experiment's answers, which `run` writes and `report` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.eval.run.answers.jsonl import Rows, append_row, read_rows, replace

if TYPE_CHECKING:
    from scripts.bench.evidence.answering.sets import QuestionSet

ANSWERS_FILE = Path("evidence/answers.jsonl")
"""Where answers are kept unless the command line says otherwise."""

CELL = ("model", "split", "set", "way", "scenes")
"""The fields that identify a line."""


def read_cells(path: Path) -> Rows:
    """Reads a file of answers.

    Raises:
        ValueError: it is another kind of file.
    """
    return read_rows(path, "a cell of these experiments", lambda row: set(CELL) <= set(row), _begins_row)


class AnswerLog:
    """Answers kept in a file that only grows, one line a cell, so that a stopped run can continue."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: the file, which need not exist.

        Raises:
            ValueError: it is another kind of file.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = read_cells(path)
        if not rows.whole:
            replace(path, rows.content)
        self.done = {_key(row) for _, row in rows.numbered}

    def has(self, row: dict[str, Any]) -> bool:
        """Checks whether the row's cell is done."""
        return _key(row) in self.done

    def add(self, row: dict[str, Any]) -> None:
        """Appends a line; it survives a crash."""
        append_row(self.path, row)
        self.done.add(_key(row))


def marks(questions: QuestionSet, right: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """Builds, by kind, a string with "1" for every right answer, and the number of each answer's picture."""
    strings: dict[str, str] = {}
    owners: dict[str, list[int]] = {}
    for picture, (asked, row) in enumerate(zip(questions.questions, right, strict=True)):
        for item, good in zip(asked, row, strict=True):
            strings[item.category] = strings.get(item.category, "") + str(int(good))
            owners.setdefault(item.category, []).append(picture)
    return {"right": strings, "pictures": owners}


def _key(row: dict[str, Any]) -> str:
    return json.dumps({name: row[name] for name in CELL}, sort_keys=True)


def _begins_row(line: bytes) -> bool:
    opening = b'{"model": '
    return line.startswith(opening) or opening.startswith(line)
