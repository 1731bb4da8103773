"""CV-Bench: 2D by source, 3D, and both: `python -m llava.eval.eval_cvbench`.

2D is the mean of ADE20K's and COCO's accuracy, 3D is Omni3D's, and the score is the mean of 2D and 3D, regardless
of the numbers of questions. Source: arXiv 2406.16860 and its data card.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from llava.eval.score.benchmark import Benchmark
from llava.eval.score.choice import labelled_main, read_letter, right_letter
from llava.eval.score.option_lists import LETTER_ONLY
from llava.eval.score.rows import Row, read_row
from llava.eval.score.score import Score, accuracy, accuracy_by


def make_question(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a row of the hub's files into LLaVA's form."""
    row = read_row(f"row {number}", row, ("type", "task", "source", "answer", "prompt"))
    kept = {name: row[name] for name in ("type", "task", "source", "answer")}
    text = f"{row['prompt'].strip()}\n{LETTER_ONLY['en']}"
    return {"question_id": number, "text": text, "category": row["type"], **kept}


SOURCES = {"2D": ("ADE20K", "COCO"), "3D": ("Omni3D",)}
ALL_SOURCES = tuple(source for group in SOURCES.values() for source in group)

BENCHMARK = Benchmark(
    name="CV-Bench",
    script="cvbench",
    folder="cv-bench",
    questions="questions.jsonl",
    images="",
    data="`cv-bench/`: `nyu-visionx/CV-Bench` as it is",
    measures="2D by source, 3D, overall",
    needs={"": "hf download nyu-visionx/CV-Bench --repo-type dataset --local-dir {dir}"},
    labels={"--question-file": "questions.jsonl"},
    scorer="eval_cvbench",
    columns=("type", "task", "image", "prompt", "answer", "source"),
    every={"source": ALL_SOURCES},
    make_question=make_question,
)


def score(questions: Sequence[Row], said: Sequence[str]) -> Score:
    """Scores answers to questions with `source`, `task` and `answer`; a group is scored if all its sources are present.

    Raises:
        ValueError: a source that CV-Bench does not have.
    """
    sources = [question["source"] for question in questions]
    if unknown := set(sources) - set(ALL_SOURCES):
        raise ValueError(f"source is {min(unknown)!r}; CV-Bench has {', '.join(ALL_SOURCES)}")
    found = [read_letter(question, text) for question, text in zip(questions, said, strict=True)]
    right = [letter == right_letter(question, "answer") for question, letter in zip(questions, found, strict=True)]
    by_source = accuracy_by(right, sources)
    groups = {
        name: _mean([by_source[source]["accuracy"] for source in members])
        for name, members in SOURCES.items()
        if all(source in by_source for source in members)
    }
    overall = {"overall": _mean(list(groups.values()))} if len(groups) == len(SOURCES) else {}
    means = {name: {"accuracy": value} for name, value in (overall | groups).items()}
    every = {"all questions": accuracy(right) | {"unparsed": found.count(None)}}
    tasks = accuracy_by(right, [question["task"] for question in questions])
    return Score("CV-Bench", {**means, **by_source, **tasks, **every})


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    return labelled_main("eval_cvbench", "CV-Bench", ("source", "task", "answer"), score, argv)


if __name__ == "__main__":
    sys.exit(main())
