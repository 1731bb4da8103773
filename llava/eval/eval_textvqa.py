"""TextVQA: the VQA soft accuracy on its validation questions: `python -m llava.eval.eval_textvqa`.

LLaVA's question file names a question by its image, which may have several, so that answers and annotations meet by
image and question text.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava.eval.records import Key, Row, keyed, read_answers, read_json, texts_for
from llava.eval.scoring import Score, accuracy, run_scorer, score_parser
from llava.eval.vqa_text import soft_accuracy

_OLD_FORM = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)


def score(annotations: Sequence[Row], said: Sequence[str]) -> Score:
    """Scores answers.

    Args:
        annotations: Each with `answers`, those of ten annotators.
        said: The model's, in the same order.
    """
    values = [soft_accuracy(text, row["answers"]) for row, text in zip(annotations, said, strict=True)]
    return Score("TextVQA", {"all": accuracy(values)})


def bare_question(prompt: str) -> str:
    """The question in a prompt of LLaVA's TextVQA files, lower case.

    It stands on the first line that is no OCR reference; before `Short answer:` in the older form.

    Raises:
        ValueError: the prompt is of no known form.
    """
    if prompt.startswith("OCR tokens: "):
        if not (found := _OLD_FORM.search(prompt)):
            raise ValueError(f"no question in the prompt {prompt!r}")
        return found[1].lower()
    lines = [line for line in prompt.split("\n") if line.strip() and not line.startswith("Reference OCR token:")]
    if not lines:
        raise ValueError(f"no question in the prompt {prompt!r}")
    return lines[0].strip().lower()


def by_question(answers: Mapping[Key, Row], path: Path) -> dict[Key, Row]:
    """Answers by (image, question).

    Raises:
        ValueError: a question of an image is answered twice.
    """
    rows = [
        (str(path), {"image_id": key[0], "question": bare_question(key[1]), "text": row["text"]})
        for key, row in answers.items()
    ]
    return keyed(path, rows, ("text",), ("image_id", "question"))


def measure(args: argparse.Namespace) -> Score:
    """Reads the files that the flags name and scores them."""
    content = read_json(args.annotation_file, dict)
    if not isinstance(content.get("data"), list):
        raise ValueError(f"{args.annotation_file} has no list `data`")
    places = [(f"{args.annotation_file}: data[{index}]", row) for index, row in enumerate(content["data"])]
    places = [(place, row | {"question": str(row.get("question", "")).strip().lower()}) for place, row in places]
    annotations = keyed(args.annotation_file, places, ("answers",), ("image_id", "question"))
    answers = by_question(read_answers(args.result_file, ("question_id", "prompt")), args.result_file)
    return score(list(annotations.values()), texts_for(annotations, answers, args.result_file))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = score_parser("eval_textvqa", "Score answers to TextVQA.")
    parser.add_argument("--annotation-file", type=Path, required=True, help="TextVQA_0.5.1_val.json")
    return run_scorer(parser, measure, argv)


if __name__ == "__main__":
    sys.exit(main())
