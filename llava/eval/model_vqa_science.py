"""Answers ScienceQA, with and without images: `python -m llava.eval.model_vqa_science`.

LLaVA's command, with its flags and formats.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.eval.run.command import answer_questions
from llava.eval.run.flags import Defaults, make_parser
from llava.eval.run.inputs.questions import Question, read_science

NAME = "model_vqa_science"


def read(args: argparse.Namespace) -> list[Question]:
    """Reads the questions that the flags name."""
    return read_science(args.question_file, args.image_folder, args.single_pred_prompt)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = make_parser(NAME, "Answer ScienceQA.", Defaults(question_file="tables/question.json"))
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter only")
    parser.add_argument("--answer-prompter", action="store_true", help="accepted for LLaVA's scripts; does nothing")
    return answer_questions(NAME, parser, read, argv)


if __name__ == "__main__":
    sys.exit(main())
