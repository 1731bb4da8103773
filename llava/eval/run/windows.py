"""Windows of a run: questions whose batches are formed together, and the images that they need."""

from __future__ import annotations

from collections.abc import Sequence

from llava.eval.run.batching import BatchLimits
from llava.eval.run.inputs.questions import Question
from llava.model.vision.preparer import Source

WINDOW = 4
"""Full batches' worth of questions in a window."""


def split_windows(asked: Sequence[Question], limits: BatchLimits) -> list[Sequence[Question]]:
    """Splits questions into windows, in order."""
    size = WINDOW * limits.rows
    return [asked[start : start + size] for start in range(0, len(asked), size)]


def find_sources(window: Sequence[Question]) -> dict[Source, None]:
    """Finds the images of some questions, each once."""
    return dict.fromkeys(question.image for question in window if question.image is not None)


def list_sources(asked: Sequence[Question], limits: BatchLimits) -> list[Source]:
    """Lists the images that a run needs, in order; one that several windows need is there for each."""
    return [source for window in split_windows(asked, limits) for source in find_sources(window)]
