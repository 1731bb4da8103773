"""Answers MMBench's table, once or for every rotation of the options: `python -m llava.eval.model_vqa_mmbench`.

LLaVA's command, with its flags and formats.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.eval.run.command import answer_questions
from llava.eval.run.flags import Defaults, make_parser
from llava.eval.run.inputs.questions import Question, read_mmbench
from llava.eval.score.option_lists import LETTER_ONLY

NAME = "model_vqa_mmbench"


def read(args: argparse.Namespace) -> list[Question]:
    """Reads the questions that the flags name."""
    return read_mmbench(args.question_file, args.all_rounds, args.single_pred_prompt, args.lang)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = make_parser(NAME, "Answer MMBench.", Defaults(question_file="tables/question.tsv"))
    parser.add_argument("--all-rounds", action="store_true", help="ask for every rotation of the options")
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter only")
    parser.add_argument("--lang", choices=tuple(LETTER_ONLY), default="en", help="language of that instruction")
    return answer_questions(NAME, parser, read, argv)


if __name__ == "__main__":
    sys.exit(main())
