"""The answers file of a run: appended as answers arrive, safe against kills, finally sorted by question.

`metadata.index` of a row names the question that it answers, since a benchmark's question_id may occur twice. Several
processes write a part each, which the first of them merges. A file that this runner did not write is never changed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.run.answers.jsonl import Row, append_rows, check_regular, format_rows, read_rows, replace
from llava.eval.run.answers.metadata import hash_image
from llava.eval.run.inputs.questions import Question
from qlip.files import is_same_file

PER_ROW = ("index", "image", "image_hash", "text", "image_size", "visual_tokens", "uniform_tokens")
"""Fields of a row's metadata that depend on its question; all others are the run's settings."""

COMPARED = 64
"""Most answers whose images are compared with those of the folder: enough to detect another set of images."""

ADVICE = "give another --answers-file, or start over with --no-resume"

_OPENING, _SECOND = b'{"question_id": ', b', "prompt": "'
_SCALAR = re.compile(rb'"(?:[^"\\]|\\.)*"|[-+.\w]+')
_CUT_SCALAR = re.compile(rb'"(?:[^"\\]|\\.)*\\?|')


class AnswerFile:
    """ANSWERS, and ANSWERS.errors beside it for questions without an answer.

    `check_place`, `check_rows`, `check_same_settings` and `done` only read; `start` is the first to write.
    """

    def __init__(self, path: Path, part: int | None = None) -> None:
        """
        Args:
            path: ANSWERS; for a symbolic link, everything is written beside its target.
            part: number of this process, where several write.
        """
        self.path = Path(os.path.realpath(path)) if path.is_symlink() else path
        self.errors = self.path.with_name(f"{self.path.stem}.errors{self.path.suffix or '.jsonl'}")
        self.part = part

    def check_place(self, *inputs: Path) -> None:
        """Raises ValueError if a file to write is a folder, a pipe or a device, or one of the `inputs`."""
        for file in self._files():
            check_regular(file)
            for other in inputs:
                if is_same_file(file, other):
                    raise ValueError(f"{file} is the same file as {other}, which is read; name another --answers-file")

    def check_rows(self, questions: Sequence[Question], resume: bool) -> None:
        """Checks that the existing files may be written.

        Args:
            questions: all questions of the question file.
            resume: False starts over, which replaces answers to other questions.

        Raises:
            ValueError: this runner did not write a file, or the file answers other questions, or about other images.
        """
        answered = []
        for file in self._files():
            for number, row in self._read(file):
                if resume and "text" in row:
                    _check_question(f"{file}:{number}", row, questions)
                    answered.append((f"{file}:{number}", row))
        _check_image_hashes(answered, questions)

    def check_same_settings(self, settings: Mapping[str, Any]) -> None:
        """Raises ValueError unless all existing answers were made with these settings."""
        for file in self._answers():
            for number, row in self._read(file):
                check_settings(f"{file}:{number}", row, settings)

    def start(self, resume: bool) -> None:
        """Merges the parts of a killed run and deletes its errors, so that those questions are asked again.

        Args:
            resume: False starts over.
        """
        for file in (self.errors, *self._parts(self.errors)):
            file.unlink(missing_ok=True)
        if not resume:
            for file in (*self._parts(self.path), self.path):  # ANSWERS last: parts must not be left without it
                file.unlink(missing_ok=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._merge(self.path)

    def done(self) -> set[int]:
        """Finds the indices of the answered questions."""
        return {row["metadata"]["index"] for file in self._answers() for _, row in self._read(file)}

    def lost(self, wanted: Iterable[int]) -> set[int]:
        """Finds which of these questions have neither an answer nor an error."""
        return set(wanted) - self.done() - {row["metadata"]["index"] for _, row in self._read(self.errors)}

    def append(self, rows: Sequence[Row]) -> None:
        """Appends answers, and errors (rows without a text) to their own file, and waits until they are on the disk."""
        for path, has_text in ((self.path, True), (self.errors, False)):
            if new := [row for row in rows if ("text" in row) is has_text]:
                append_rows(self._own(path), new)

    def finish(self) -> tuple[int, int]:
        """Merges the parts in the questions' order; returns the numbers of answers and of errors."""
        return self._merge(self.path), self._merge(self.errors)

    def _own(self, path: Path) -> Path:
        return path if self.part is None else path.with_name(f"{path.name}.part{self.part}")

    @staticmethod
    def _parts(path: Path) -> list[Path]:
        name = re.compile(re.escape(path.name) + r"\.part[0-9]+")
        return sorted(file for file in path.parent.glob("*") if name.fullmatch(file.name))

    def _answers(self) -> list[Path]:
        return [self.path, *self._parts(self.path)]

    def _files(self) -> list[Path]:
        return [*self._answers(), self.errors, *self._parts(self.errors)]

    def _read(self, file: Path) -> list[tuple[int, Row]]:
        """Reads rows with their line numbers.

        Raises:
            ValueError: this runner did not write the file.
        """
        kind = "error" if file.name.startswith(self.errors.name) else "text"
        try:
            return read_rows(file, "an answer of this runner", lambda row: _is_row(row, kind), is_row_start).numbered
        except ValueError as error:
            raise ValueError(f"{error}; name another --answers-file") from None

    def _merge(self, path: Path) -> int:
        """Merges a file and its parts into the file, which is rewritten only if this changes it."""
        parts = self._parts(path)
        rows = sort_rows(row for file in (path, *parts) for _, row in self._read(file))
        content = format_rows(rows)
        if path == self.path or rows:
            shared = path.exists() and path.stat().st_nlink > 1  # by a hard link: its other name must keep its content
            if shared or not path.exists() or path.read_bytes() != content:
                replace(path, content)
        for part in parts:
            part.unlink()
        return len(rows)


def sort_rows(rows: Iterable[Row]) -> list[Row]:
    """Sorts rows by question and keeps the first of those that answer the same one."""
    first: dict[int, Row] = {}
    for row in rows:
        first.setdefault(row["metadata"]["index"], row)
    return [first[index] for index in sorted(first)]


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Describes where two nested objects of settings differ."""
    found = []
    for name in [*new, *(name for name in old if name not in new)]:
        before, now = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += difference(before, now, f"{prefix}{name}.")
        elif before != now:
            found.append(f"{prefix}{name} is {json.dumps(before)} there and {json.dumps(now)} now")
    return found


def is_row_start(line: bytes) -> bool:
    """Whether bytes begin a row's line, which is JSON that starts with `question_id` and `prompt`."""
    if not line.startswith(_OPENING):
        return _OPENING.startswith(line)
    rest = line[len(_OPENING) :]
    if (name := _SCALAR.match(rest)) is None:
        return _CUT_SCALAR.fullmatch(rest) is not None
    after = rest[name.end() :]
    return after.startswith(_SECOND) or _SECOND.startswith(after)


def _is_row(row: Row, kind: str) -> bool:
    metadata = row.get("metadata")
    index = metadata.get("index") if isinstance(metadata, dict) else None
    return type(index) is int and index >= 0 and "question_id" in row and isinstance(row.get(kind), str)


def _check_question(where: str, row: Row, questions: Sequence[Question]) -> None:
    """Raises ValueError unless a row answers its question about its image."""
    index, image = row["metadata"]["index"], row["metadata"].get("image")
    asked = questions[index] if 0 <= index < len(questions) else None
    if asked is None or row.get("question_id") != asked.question_id:
        found = "nothing" if asked is None else repr(asked.question_id)
        raise ValueError(
            f"{where} answers question {row.get('question_id')!r}, but number {index} of the question file is {found};"
            f" {ADVICE}"
        )
    if row.get("prompt") != asked.prompt:
        raise ValueError(
            f"{where} answers question {asked.question_id!r}, but its text (prompt) is not that of the question file;"
            f" {ADVICE}"
        )
    if row["metadata"].get("text", asked.text_hash) != asked.text_hash:  # answers of earlier versions lack it
        raise ValueError(
            f"{where} answers question {asked.question_id!r}, but with another instruction or other options than these"
            f" flags and files give; {ADVICE}"
        )
    if image != asked.image_name:
        raise ValueError(
            f"{where} answers question {asked.question_id!r} about the image {image!r}, but the question file has"
            f" {asked.image_name!r}; {ADVICE}"
        )


def _check_image_hashes(answered: Sequence[tuple[str, Row]], questions: Sequence[Question]) -> None:
    """Raises ValueError if answers, of which some are compared, are about other images than the folder has now.

    Images are compared by content, not by folder, since a run may continue on another machine. Answers of earlier
    versions have no hash.
    """
    hashed = [(where, row) for where, row in answered if row["metadata"].get("image_hash") is not None]
    count = min(COMPARED, len(hashed))
    for place in range(count):
        where, row = hashed[place * (len(hashed) - 1) // max(1, count - 1)]
        asked = questions[row["metadata"]["index"]]
        if hash_image(asked.image) not in (None, row["metadata"]["image_hash"]):
            raise ValueError(
                f"{where} answers question {asked.question_id!r} about another image than {asked.image} is now;"
                f" give the --image-folder of before to continue, or {ADVICE}"
            )


def check_settings(where: str, row: Row, settings: Mapping[str, Any]) -> None:
    """Raises ValueError unless a row was made with these settings; `where` names it."""
    own = {name: value for name, value in row["metadata"].items() if name not in PER_ROW}
    if differences := difference(own, settings):
        raise ValueError(
            f"{where} was made with other settings: {'; '.join(differences[:5])};"
            f" give the same to continue, or {ADVICE}"
        )
