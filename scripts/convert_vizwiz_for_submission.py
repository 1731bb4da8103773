"""Writes answers to VizWiz as its server takes them: `python scripts/convert_vizwiz_for_submission.py`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OneLineParser, check_outputs, parse_and_run
from llava.eval.score.prompts import check_prompts
from llava.eval.score.rows import Row, find_texts, format_key, read_answers, read_labelled
from llava.eval.score.score import write_json
from llava.eval.score.vqa import normalise_answer


def submission(questions: Sequence[Row], said: Sequence[str]) -> list[Row]:
    """Builds `image, answer` for each question, normalised."""
    return [
        {"image": question["image"], "answer": normalise_answer(text)}
        for question, text in zip(questions, said, strict=True)
    ]


def convert(args: argparse.Namespace) -> None:
    """Writes the submission file; with --check it only reads the question file."""
    check_outputs(args, "result_upload_file")
    questions = read_labelled(args.annotation_file, ("image",))
    if args.check:
        print(f"{args.annotation_file}: {len(questions)} questions, each with its own id")
        return
    if args.result_upload_file is None:
        raise ValueError("--result-upload-file is needed with --result-file")
    answers = read_answers(args.result_file)
    said = find_texts(questions, answers, args.result_file)
    asked = {key: row["text"] for key, row in questions.items() if isinstance(row.get("text"), str)}
    check_prompts(args.result_file, answers, asked)
    if unknown := answers.keys() - questions.keys():
        found = f"{args.result_file} answers question {format_key(min(unknown))}"
        raise ValueError(f"{found}, which {args.annotation_file} does not have")
    write_json(args.result_upload_file, submission(list(questions.values()), said))
    print(f"{args.result_upload_file}: {len(questions)} answers")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = OneLineParser(prog="convert_vizwiz_for_submission", description="Write VizWiz's submission file.")
    parser.add_argument("--annotation-file", type=Path, required=True, help="the question file, llava_test.jsonl")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--result-file", type=Path, help="answers, as the runner writes them")
    source.add_argument("--check", action="store_true", help="only check the question file, before it is answered")
    parser.add_argument("--result-upload-file", type=Path, help="file to write")
    return parse_and_run(parser, convert, argv)


if __name__ == "__main__":
    sys.exit(main())
