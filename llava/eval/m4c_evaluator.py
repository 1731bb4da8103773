"""LLaVA's names for the normalisation and accuracy of VQA answers in `llava.eval.score.vqa`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llava.eval.score.vqa import normalise_answer, soft_accuracy


class EvalAIAnswerProcessor:
    """Normalises an answer when called."""

    def __call__(self, item: str) -> str:
        return normalise_answer(item)


class TextVQAAccuracyEvaluator:
    """The mean soft accuracy of a list of answers."""

    def eval_pred_list(self, pred_list: Sequence[Mapping[str, Any]]) -> float:
        """Computes the mean soft accuracy, in [0, 1].

        Args:
            pred_list: `pred_answer`, a text, and `gt_answers`, ten of them, for each question; at least one.
        """
        if not pred_list:
            raise ValueError("there is no answer to score")
        scores = [soft_accuracy(entry["pred_answer"], entry["gt_answers"]) for entry in pred_list]
        return sum(scores) / len(scores)
