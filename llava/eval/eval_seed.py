"""SEED-Bench: accuracy on images, on videos, on all, and by type of question: `python -m llava.eval.eval_seed`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.score.benchmark import ANNOTATIONS, Benchmark
from llava.eval.score.choice import right_letter
from llava.eval.score.parse import option_letter
from llava.eval.score.rows import Row, index_rows, place_rows, read_json
from llava.eval.score.score import Results, Score, accuracy, accuracy_by, run_scorer, score_parser

SOURCE = "https://huggingface.co/datasets/AILab-CVPR/SEED-Bench"
BENCHMARK = Benchmark(
    name="SEED-Bench",
    script="seed",
    folder="seed_bench",
    questions="llava-seed-bench.jsonl",
    images="",
    data="`seed_bench/`: `SEED-Bench.json`, images, the videos' frames",
    measures="images, videos, by type",
    needs={
        "llava-seed-bench.jsonl": ANNOTATIONS,
        "SEED-Bench.json": f"SEED-Bench.json of {SOURCE}, into {{dir}}",
        "SEED-Bench-image": f"the images of {SOURCE}, as {{dir}}/SEED-Bench-image, and the videos' frames beside them",
    },
    labels={"--annotation-file": "SEED-Bench.json"},
    scorer="eval_seed",
)

KINDS = ("image", "video")
LETTERS = "ABCD"
FIELDS = ("answer", "data_type", "question_type_id", "choice_a", "choice_b", "choice_c", "choice_d")


def read_seed_letter(question: Row, text: str) -> str | None:
    """Reads the letter that an answer chooses; None where it chooses none."""
    return option_letter(text, {letter: str(question[f"choice_{letter.lower()}"]) for letter in LETTERS})


def score(questions: Sequence[Row], types: Mapping[int, str], said: Sequence[str]) -> Score:
    """Scores answers.

    Args:
        questions: As in `SEED-Bench.json`.
        types: `question_type_id` -> name.
        said: The model's answers, in the same order.
    """
    letters = [read_seed_letter(row, text) for row, text in zip(questions, said, strict=True)]
    right = [letter == right_letter(row, "answer", LETTERS) for row, letter in zip(questions, letters, strict=True)]
    rows = {
        "all": accuracy(right) | {"unparsed": letters.count(None)},
        **accuracy_by(right, [row["data_type"] for row in questions]),
        **accuracy_by(right, [types[row["question_type_id"]] for row in questions]),
    }
    return Score("SEED-Bench", rows)


def read_questions(path: Path, only: str | None = None) -> tuple[dict[tuple[str, ...], Row], dict[int, str]]:
    """Reads the questions, all or only those of "image" or "video", and the names of the question types.

    Raises:
        ValueError: the file is not SEED-Bench's, or holds no such question.
    """
    content: dict[str, Any] = read_json(path, dict)
    if missing := [name for name in ("questions", "question_type") if name not in content]:
        raise ValueError(f"{path} has no {', '.join(missing)}; it must be SEED-Bench.json")
    if not isinstance(named := content["question_type"], dict):
        raise ValueError(f"{path}: question_type is a {type(named).__name__}; it must map the types' names to numbers")
    questions = index_rows(path, place_rows(path, "questions", content["questions"]), FIELDS, ("question_id",))
    kept = {key: row for key, row in questions.items() if only in (None, row["data_type"])}
    if not kept:
        raise ValueError(f"{path} holds no questions about {only}s")
    types = {number: name for name, number in named.items()}
    for row in kept.values():
        if (kind := row["question_type_id"]) not in list(types):  # a list, since the value may be unhashable
            raise ValueError(f"{path}: question_type does not name the type {kind!r}")
    return kept, types


def score_files(args: argparse.Namespace) -> Score:
    """Scores the answers that the flags name."""
    questions, types = read_questions(args.annotation_file, args.only)
    return score(list(questions.values()), types, Results.of(args).texts(questions))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that choose the questions."""
    parser.add_argument("--annotation-file", type=Path, required=True, help="SEED-Bench.json")
    parser.add_argument("--only", choices=KINDS, help="questions about images or videos alone")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = score_parser("eval_seed", "Score answers to SEED-Bench.")
    add_flags(parser)
    return run_scorer(parser, score_files, argv)


if __name__ == "__main__":
    sys.exit(main())
