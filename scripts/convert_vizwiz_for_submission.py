"""Answers to VizWiz as its server takes them: `python scripts/convert_vizwiz_for_submission.py`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OneLineParser, parse_and_run
from llava.eval.records import Row, read_answers, read_labelled, texts_for
from llava.eval.scoring import write_json
from llava.eval.vqa_text import normalise_answer


def submission(questions: Sequence[Row], said: Sequence[str]) -> list[Row]:
    """`image, answer` for each question, normalised."""
    return [
        {"image": question["image"], "answer": normalise_answer(text)}
        for question, text in zip(questions, said, strict=True)
    ]


def convert(args: argparse.Namespace) -> None:
    """Writes the submission file."""
    questions = read_labelled(args.annotation_file, ("image",))
    said = texts_for(questions, read_answers(args.result_file), args.result_file)
    write_json(args.result_upload_file, submission(list(questions.values()), said))
    print(f"{args.result_upload_file}: {len(questions)} answers")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = OneLineParser(prog="convert_vizwiz_for_submission", description="Write VizWiz's submission file.")
    parser.add_argument("--annotation-file", type=Path, required=True, help="the question file, llava_test.jsonl")
    parser.add_argument("--result-file", type=Path, required=True, help="answers, as the runner writes them")
    parser.add_argument("--result-upload-file", type=Path, required=True, help="file to write")
    return parse_and_run(parser, convert, argv)


if __name__ == "__main__":
    sys.exit(main())
