"""Writes and reads the small files of the tests of question files and scorers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TEXTS = ("What is in the picture?", "How many objects are there?", "Is there a red circle?")
PICTURES = 6
"""Pictures of the benchmark in conftest.py, which asks each text about each picture."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """A file of JSON lines, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json(path: Path, content: Any) -> Path:
    """A JSON file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_answers(path: Path, texts: dict[Any, str], prompts: dict[Any, str] | None = None) -> Path:
    """An answers file as the runner writes it: question -> what the model said, and what it was asked ("?")."""
    asked = prompts or {}
    rows = [{"question_id": name, "prompt": asked.get(name, "?"), "text": text} for name, text in texts.items()]
    return write_rows(path, rows)
