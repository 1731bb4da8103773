"""The file of answers of a run: it grows as answers come, takes up after a kill, and ends in the questions' order.

A row knows by `metadata.index` which question it answers, since a benchmark's question_id may occur twice. Several
processes write a part each, which the first of them merges. Knows neither models nor pictures.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.journal import append_lines, replace_lines, whole_lines
from llava.eval.questions import Question

Row = dict[str, Any]

PER_ROW = ("index", "image", "image_size", "visual_tokens", "uniform_tokens")
"""Fields of a row's metadata that hang on its question; all others are the run's settings."""

ADVICE = "name another answers file or begin anew with --no-resume"


class AnswerFile:
    """ANSWERS, and ANSWERS.errors beside it for the questions that have none."""

    def __init__(self, path: Path, part: int | None = None) -> None:
        """
        Args:
            path: ANSWERS.
            part: number of the process, where several write.
        """
        self.path = path
        self.errors = path.with_name(f"{path.stem}.errors{path.suffix or '.jsonl'}")
        self.part = part

    def start(self, questions: Sequence[Question], resume: bool) -> None:
        """Merges what a killed run left and forgets its errors, so that those questions are asked again.

        Args:
            questions: all of the question file.
            resume: False begins anew.

        Raises:
            ValueError: the file answers other questions.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for file in (self.errors, *self._parts(self.errors)):
            file.unlink(missing_ok=True)
        if not resume:
            for file in (*self._parts(self.path), self.path):  # ANSWERS last, as no parts may be left without it
                file.unlink(missing_ok=True)
        for file in (self.path, *self._parts(self.path)):
            for number, row in enumerate(_read(file), start=1):
                _check_question(f"{file}:{number}", row, questions)
        self._merge(self.path)

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raises ValueError unless all answers so far were made with these settings."""
        for number, row in enumerate(_read(self.path), start=1):
            check_settings(f"{self.path}:{number}", row, settings)

    def done(self) -> set[int]:
        """Indices of the questions that are answered."""
        return {row["metadata"]["index"] for row in _read(self.path)}

    def lost(self, wanted: Iterable[int]) -> set[int]:
        """Which of these questions have neither an answer nor an error."""
        return set(wanted) - self.done() - {row["metadata"]["index"] for row in _read(self.errors)}

    def append(self, rows: Sequence[Row]) -> None:
        """Adds answers, and errors (rows without a text) to their own file, and waits until they are on the disk."""
        for path, has_text in ((self.path, True), (self.errors, False)):
            if new := [row for row in rows if ("text" in row) is has_text]:
                append_lines(self._own(path), new)

    def finish(self) -> tuple[int, int]:
        """Merges the parts and puts all in the questions' order; returns numbers of answers and of errors."""
        return self._merge(self.path), self._merge(self.errors)

    def _own(self, path: Path) -> Path:
        return path if self.part is None else path.with_name(f"{path.name}.part{self.part}")

    @staticmethod
    def _parts(path: Path) -> list[Path]:
        return sorted(path.parent.glob(f"{glob.escape(path.name)}.part[0-9]*"))

    def _merge(self, path: Path) -> int:
        parts = self._parts(path)
        rows = [row for file in (path, *parts) for row in _read(file)]
        ordered = in_order(rows)
        if parts or ordered != rows:
            replace_lines(path, ordered)
        elif not path.exists() and path == self.path:
            path.touch()
        for part in parts:
            part.unlink()
        return len(ordered)


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Rows in the order of their questions, the first of those that answer the same one."""
    first: dict[int, Row] = {}
    for row in rows:
        first.setdefault(row["metadata"]["index"], row)
    return [first[index] for index in sorted(first)]


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What two nested objects of settings differ in, in words."""
    found = []
    for name in [*new, *(name for name in old if name not in new)]:
        before, now = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += difference(before, now, f"{prefix}{name}.")
        elif before != now:
            found.append(f"{prefix}{name} is {json.dumps(before)} there and {json.dumps(now)} now")
    return found


def _read(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            row = json.loads(line)
            int(row["metadata"]["index"])
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path}:{number} is no answer of this runner; {ADVICE}") from None
        rows.append(row)
    return rows


def _check_question(where: str, row: Row, questions: Sequence[Question]) -> None:
    """Raises ValueError unless a row answers its question, about its picture."""
    index, image = row["metadata"]["index"], row["metadata"].get("image")
    asked = questions[index] if 0 <= index < len(questions) else None
    if asked is None or (row.get("question_id"), row.get("prompt")) != (asked.question_id, asked.prompt):
        found = "nothing" if asked is None else repr(asked.question_id)
        raise ValueError(
            f"{where} answers question {row.get('question_id')!r}, but number {index} of the question file is {found}"
            f" or has another text; {ADVICE}"
        )
    if image != asked.image_name:
        raise ValueError(
            f"{where} answers question {asked.question_id!r} about the picture {image!r}, but the question file has"
            f" {asked.image_name!r}; {ADVICE}"
        )


def check_settings(where: str, row: Row, settings: Mapping[str, Any]) -> None:
    """Raises ValueError unless a row was made with these settings; `where` names it."""
    own = {name: value for name, value in row["metadata"].items() if name not in PER_ROW}
    if differences := difference(own, settings):
        raise ValueError(
            f"{where} was made with other settings: {'; '.join(differences[:5])}; give the same to go on, or {ADVICE}"
        )
