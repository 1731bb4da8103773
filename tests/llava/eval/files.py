"""Writes the small hand-made files that the scorers' tests read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


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


def write_answers(path: Path, texts: dict[Any, str], **more: Any) -> Path:
    """An answers file as the runner writes it: question -> what the model said."""
    return write_rows(
        path, [{"question_id": name, "prompt": "?", "text": text, **more} for name, text in texts.items()]
    )
