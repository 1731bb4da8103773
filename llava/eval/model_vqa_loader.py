"""Answers a file of short questions about images: `python -m llava.eval.model_vqa_loader`.

LLaVA's command for benchmarks, with its flags and formats; greedy by default.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.eval.run.command import answer_questions
from llava.eval.run.flags import Defaults, make_parser
from llava.eval.run.inputs.questions import Question, read_lines

NAME = "model_vqa_loader"


def read(args: argparse.Namespace) -> list[Question]:
    """Reads the questions that the flags name."""
    return read_lines(args.question_file, args.image_folder, with_answers=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = make_parser(NAME, "Answer a file of short questions.", Defaults(temperature=0.0, max_new_tokens=128))
    return answer_questions(NAME, parser, read, argv)


if __name__ == "__main__":
    sys.exit(main())
