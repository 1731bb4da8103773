"""RealWorldQA: accuracy, and that of multiple-choice and of open questions: `python -m llava.eval.eval_realworldqa`.

An open answer is right if it equals the label after the normalisation of VQA answers, so that "Two." is "2"; where the
label is a letter, if it names that letter.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from llava.eval.score.benchmark import Benchmark
from llava.eval.score.choice import label_letter, labelled_main, read_letter
from llava.eval.score.option_lists import find_listed_options
from llava.eval.score.parse import letters, option_letter
from llava.eval.score.rows import Row, read_row
from llava.eval.score.score import Score, accuracy, accuracy_by
from llava.eval.score.vqa import normalise_answer


def make_question(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a row of the hub's files into LLaVA's form; the data set's questions say how to answer."""
    row = read_row(f"row {number}", row, ("question", "answer"))
    return {"question_id": number, "text": row["question"].strip(), "answer": row["answer"]}


BENCHMARK = Benchmark(
    name="RealWorldQA",
    script="realworldqa",
    folder="realworldqa",
    questions="questions.jsonl",
    images="",
    data="`realworldqa/`: `xai-org/RealworldQA` as it is",
    measures="all, choice, open",
    needs={"": "hf download xai-org/RealworldQA --repo-type dataset --local-dir {dir}"},
    labels={"--question-file": "questions.jsonl"},
    scorer="eval_realworldqa",
    columns=("image", "question", "answer"),
    make_question=make_question,
)

CHOICE, OPEN = "multiple choice", "open"


def kind(question: Row) -> str:
    """Whether a question lists options, one of which its `answer` names."""
    return CHOICE if label_letter(question["answer"]) in find_listed_options(question["text"]) else OPEN


def judge_answer(question: Row, text: str) -> bool:
    """Judges whether an answer is right."""
    if kind(question) == CHOICE:
        return read_letter(question, text) == label_letter(question["answer"])
    if (letter := label_letter(question["answer"])) in letters(26):  # the normalisation takes "A" for the article
        return option_letter(text, letters(26)) == letter
    right = normalise_answer(question["answer"])
    return bool(right) and normalise_answer(text) == right


def score(questions: Sequence[Row], said: Sequence[str]) -> Score:
    """Scores answers to questions with `answer`."""
    right = [judge_answer(question, text) for question, text in zip(questions, said, strict=True)]
    kinds = accuracy_by(right, [kind(question) for question in questions])
    return Score("RealWorldQA", {"all": accuracy(right), **kinds})


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    return labelled_main("eval_realworldqa", "RealWorldQA", ("answer",), score, argv)


if __name__ == "__main__":
    sys.exit(main())
