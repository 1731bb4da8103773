"""Parts of examinations."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from playground.examination import Examination


def keep_kinds(exam: Examination, kinds: Collection[str]) -> Examination:
    """Keeps the questions of these kinds."""
    return replace(exam, questions=[[item for item in row if item.kind in kinds] for row in exam.questions])
