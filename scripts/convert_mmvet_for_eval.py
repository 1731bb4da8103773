"""Writes answers to MM-Vet as its judge takes them: `python scripts/convert_mmvet_for_eval.py`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OneLineParser, check_outputs, parse_and_run
from llava.eval.score.rows import find_answers, read_answers, read_labelled
from llava.eval.score.score import write_json


def question_name(number: str) -> str:
    """Names a question as MM-Vet does: "v1_0", which LLaVA's file calls 0."""
    return f"v1_{number.removeprefix('v1_')}"


def convert(args: argparse.Namespace) -> None:
    """Writes one object of question -> answer, by MM-Vet's name for a question."""
    check_outputs(args, "dst")
    answers = read_answers(args.src)
    named: dict[str, str] = {}
    for (number,), row in answers.items():
        name = question_name(number)
        if name in named:
            raise ValueError(f"{args.src} answers {name} twice, as {name!r} and as {name.removeprefix('v1_')!r}")
        named[name] = row["text"]
    if args.question_file is not None:
        asked = {question_name(key[0]): key for key in read_labelled(args.question_file, ())}
        find_answers(asked.values(), {asked[name]: {"text": named[name]} for name in named if name in asked}, args.src)
    write_json(args.dst, named)
    print(f"{args.dst}: {len(named)} answers")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = OneLineParser(prog="convert_mmvet_for_eval", description="Write the file that MM-Vet's judge takes.")
    parser.add_argument("--src", type=Path, required=True, help="answers, as the runner writes them")
    parser.add_argument("--dst", type=Path, required=True, help="file to write")
    parser.add_argument("--question-file", type=Path, help="questions, each of which must have an answer")
    return parse_and_run(parser, convert, argv)


if __name__ == "__main__":
    sys.exit(main())
