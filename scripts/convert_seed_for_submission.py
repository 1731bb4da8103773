"""Scores answers to SEED-Bench and writes them as its leaderboard takes them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava.command import parse_and_run
from llava.eval.eval_seed import add_flags, read_questions, read_seed_letter, score_files
from llava.eval.score.rows import Key, Row, find_texts, read_answers
from llava.eval.score.score import print_score, score_parser


def submission(questions: Mapping[Key, Row], said: Sequence[str]) -> list[Row]:
    """Builds `question_id, prediction` for each question; an answer that names no option stays as it is."""
    return [
        {"question_id": question["question_id"], "prediction": read_seed_letter(question, text) or text}
        for question, text in zip(questions.values(), said, strict=True)
    ]


def convert(args: argparse.Namespace) -> None:
    """Prints the score and writes the submission, JSON lines; with --check it only checks the labels."""
    print_score(args, score_files, ["result_upload_file"])
    if args.check:
        return
    questions, _ = read_questions(args.annotation_file, args.only)
    rows = submission(questions, find_texts(questions, read_answers(args.result_file), args.result_file))
    args.result_upload_file.parent.mkdir(parents=True, exist_ok=True)
    args.result_upload_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{args.result_upload_file}: {len(rows)} predictions")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = score_parser("convert_seed_for_submission", "Score SEED-Bench and write its submission file.")
    add_flags(parser)
    parser.add_argument("--result-upload-file", type=Path, required=True, help="file to write")
    return parse_and_run(parser, convert, argv)


if __name__ == "__main__":
    sys.exit(main())
