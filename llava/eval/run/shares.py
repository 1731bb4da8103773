"""Shares of a cluster's questions, and the stage that prepares their images.

Workers that prepare images import this module, and no library of models with it.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llava.eval.run.batching import BatchLimits
from llava.eval.run.inputs.preparation import pack
from llava.eval.run.inputs.questions import Question
from llava.eval.run.windows import list_sources
from llava.model.vision.preparer import Preparer


def write_shares(path: Path, asked: Sequence[Question], size: int) -> int:
    """Writes questions as JSON lines, `size` questions in each; returns the number of lines."""
    starts = range(0, len(asked), size)
    with path.open("w", encoding="utf-8") as file:
        for start in starts:
            entries = [_write_question(question) for question in asked[start : start + size]]
            file.write(json.dumps({"questions": json.dumps(entries)}) + "\n")
    return len(starts)


def read_share(text: str) -> list[Question]:
    """Reads one line of `write_shares`."""
    return [_read_question(**entry) for entry in json.loads(text)]


def _write_question(question: Question) -> dict[str, Any]:
    """Converts a question to JSON types, which do not distinguish a file from a `data:` URL."""
    image = question.image
    return asdict(question) | {"image": str(image), "is_file": isinstance(image, Path)}


def _read_question(image: str, is_file: bool, **fields: Any) -> Question:
    """Inverts `_write_question`."""
    return Question(image=Path(image) if is_file else image, **fields)


class ImageStage:
    """Prepares the images of a share."""

    def __init__(self, preparer: Preparer, limits: BatchLimits) -> None:
        self.preparer = preparer
        self.limits = limits

    def __call__(self, share: dict[str, Any]) -> dict[str, Any]:
        """Adds the prepared images, which `Runner.run` takes with the questions."""
        sources = list_sources(read_share(share["questions"]), self.limits)
        ready = [pack(self.preparer(source)) for source in sources]
        return {"questions": share["questions"], "ready": pickle.dumps(ready)}
