"""An answer to a question, and its row in the answers file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from llava.eval.run.answers.jsonl import Row
from llava.eval.run.answers.metadata import hash_image
from llava.eval.run.inputs.questions import Question
from llava.mm_utils import get_model_name_from_path
from llava.model.vision.prepared_image import PreparedImage
from llava.utils import demo_model_path


@dataclass(frozen=True)
class Answer:
    """An answer, or the reason why there is none."""

    question: Question
    text: str | None
    """What the model said; None where it said nothing."""
    error: str | None = None
    """Why it said nothing."""
    prepared: PreparedImage | None = None
    """The image that the model was shown."""


def row_maker(model_path: str | None, settings: Mapping[str, Any]) -> Callable[[Answer], Row]:
    """Makes a function that turns answers into rows of the answers file, and failed ones into rows of the errors file.

    Args:
        model_path: the flag; None is the embedded model.
        settings: the part of the metadata that is the same for all answers.
    """
    model_id = get_model_name_from_path(str(model_path or demo_model_path()))
    run_name = sha256(repr(sorted(settings.items())).encode()).hexdigest()

    def make_row(answer: Answer) -> Row:
        question, prepared = answer.question, answer.prepared
        row: Row = {"question_id": question.question_id, "prompt": question.prompt}
        if answer.text is None:
            place = {"index": question.index, "image": question.image_name}
            return {**row, **question.extra, "error": answer.error, "metadata": place}
        metadata = {
            "index": question.index,
            "image": question.image_name,
            "image_hash": hash_image(question.image),
            "text": question.text_hash,
            "image_size": list(prepared.size) if prepared else None,
            "visual_tokens": prepared.tokens if prepared else 0,
            "uniform_tokens": prepared.uniform_tokens if prepared else 0,
            **settings,
        }
        answer_id = sha256(f"{run_name}:{question.index}".encode()).hexdigest()[:22]
        return {
            **row,
            "text": answer.text,
            **question.extra,
            "answer_id": answer_id,
            "model_id": model_id,
            "metadata": metadata,
        }

    return make_row
