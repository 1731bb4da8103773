"""Writes answers to MM-Vet as its judge takes them: `python scripts/convert_mmvet_for_eval.py`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava.command import OneLineParser, check_outputs, parse_and_run
from llava.eval.score.prompts import check_prompts
from llava.eval.score.rows import Key, Row, find_answers, format_key, read_answers, read_labelled
from llava.eval.score.score import write_json


def question_name(number: str) -> str:
    """Names a question as MM-Vet does: "v1_0", which LLaVA's file calls 0."""
    return f"v1_{number.removeprefix('v1_')}"


def check_answers(path: Path, answers: Mapping[Key, Row], question_file: Path) -> None:
    """Raises ValueError unless answers are to all questions of a file and to no others."""
    questions = {question_name(key[0]): row["text"] for key, row in read_labelled(question_file, ("text",)).items()}
    asked = {(name,): text for name, text in questions.items()}
    said = {(question_name(number),): row for (number,), row in answers.items()}
    find_answers(asked, said, path)
    check_prompts(path, said, asked)
    if unknown := said.keys() - asked.keys():
        raise ValueError(f"{path} answers question {format_key(min(unknown))}, which {question_file} does not have")


def convert(args: argparse.Namespace) -> None:
    """Writes one object of question -> answer, by MM-Vet's names; with --check it only reads the question file."""
    if args.check:
        print(f"{args.check}: {len(read_labelled(args.check, ('text',)))} questions, each with its own id")
        return
    if args.dst is None:
        raise ValueError("--dst is needed with --src")
    check_outputs(args, "dst")
    answers = read_answers(args.src)
    named: dict[str, str] = {}
    for (number,), row in answers.items():
        name = question_name(number)
        if name in named:
            raise ValueError(f"{args.src} answers {name} twice, as {name!r} and as {name.removeprefix('v1_')!r}")
        named[name] = row["text"]
    if args.question_file is not None:
        check_answers(args.src, answers, args.question_file)
    write_json(args.dst, named)
    print(f"{args.dst}: {len(named)} answers")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = OneLineParser(prog="convert_mmvet_for_eval", description="Write the file that MM-Vet's judge takes.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--src", type=Path, help="answers, as the runner writes them")
    source.add_argument("--check", type=Path, metavar="QUESTIONS", help="only check this file, before it is answered")
    parser.add_argument("--dst", type=Path, help="file to write")
    parser.add_argument("--question-file", type=Path, help="questions, each of which must have an answer")
    return parse_and_run(parser, convert, argv)


if __name__ == "__main__":
    sys.exit(main())
