"""Answers a file of questions without images: `python -m llava.eval.model_qa`.

LLaVA's command for language models, with its flags and formats. The model is a LLaVA or a language model alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.eval.run.command import answer_questions
from llava.eval.run.flags import Defaults, make_parser
from llava.eval.run.inputs.questions import Question
from llava.eval.score.rows import read_labelled

NAME = "model_qa"


def read(args: argparse.Namespace) -> list[Question]:
    """Reads the questions that the flags name: JSON lines of `question_id, text`.

    Raises:
        ValueError: a line is not a question, or there are none.
    """
    rows = read_labelled(args.question_file, ("text",)).values()
    return [Question(row["question_id"], row["text"], row["text"], None, index=i) for i, row in enumerate(rows)]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = make_parser(NAME, "Answer a file of questions without images.", Defaults())
    parser.add_argument("--model-name", dest="model_path", help="LLaVA's name for --model-path in this command")
    return answer_questions(NAME, parser, read, argv, needs_tower=False)


if __name__ == "__main__":
    sys.exit(main())
