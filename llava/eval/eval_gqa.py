"""GQA: accuracy, and by kind of answer and of question: `python -m llava.eval.eval_gqa`.

This is what GQA's own `eval.py` computes from predictions alone; consistency, validity, plausibility and distribution
need more files, which that script reads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava.eval.score.benchmark import ANNOTATIONS, Benchmark
from llava.eval.score.rows import Row, read_json, read_row
from llava.eval.score.score import Results, Score, accuracy, accuracy_by, run_scorer, score_parser

SOURCE = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
BENCHMARK = Benchmark(
    name="GQA",
    script="gqa",
    folder="gqa",
    questions="{split}.jsonl",
    images="data/images",
    data="`gqa/data/`: `images/`, `testdev_balanced_questions.json`",
    measures="all, binary, open, by type",
    needs={
        "{split}.jsonl": ANNOTATIONS,
        "data/testdev_balanced_questions.json": f"the questions of {SOURCE}, into {{dir}}/data",
        "data/images": f"the images of {SOURCE}, as {{dir}}/data/images",
    },
    labels={"--question-file": "data/testdev_balanced_questions.json"},
    scorer="eval_gqa",
    split="llava_gqa_testdev_balanced",
)


def prediction(text: str) -> str:
    """Normalises an answer as GQA does: lower case, without a final full stop."""
    return text.strip().rstrip(".").lower()


def score(questions: Mapping[str, Row], said: Sequence[str]) -> Score:
    """Scores answers.

    Args:
        questions: As in GQA's question files, `answer` and `types` among their fields.
        said: The model's answers, in the same order.
    """
    right = [prediction(text) == prediction(row["answer"]) for row, text in zip(questions.values(), said, strict=True)]
    structure = [row["types"]["structural"] for row in questions.values()]
    meaning = [row["types"]["semantic"] for row in questions.values()]
    rows = {
        "all": accuracy(right),
        **accuracy_by(right, ["open" if kind == "query" else "binary" for kind in structure]),
        **accuracy_by(right, [f"structure: {kind}" for kind in structure]),
        **accuracy_by(right, [f"about: {kind}" for kind in meaning]),
    }
    return Score("GQA", rows)


def score_files(args: argparse.Namespace) -> Score:
    """Scores the answers that the flags name."""
    questions = {}
    for name, row in read_json(args.question_file, dict).items():
        row = questions[name] = read_row(f"{args.question_file}: question {name!r}", row, ("answer", "types"))
        if not isinstance(types := row["types"], dict) or not {"structural", "semantic"} <= types.keys():
            raise ValueError(
                f"{args.question_file}: types of question {name!r} is {types!r}; it must have structural and semantic"
            )
    return score(questions, Results.of(args).texts([(name,) for name in questions], labels=args.question_file))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = score_parser("eval_gqa", "Score answers to GQA.")
    parser.add_argument("--question-file", type=Path, required=True, help="GQA's testdev_balanced_questions.json")
    return run_scorer(parser, score_files, argv)


if __name__ == "__main__":
    sys.exit(main())
