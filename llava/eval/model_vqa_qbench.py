"""Answers Q-Bench, in English or Chinese: `python -m llava.eval.model_vqa_qbench`.

LLaVA's command, with its flags and prompts; `llava.eval.eval_qbench` makes its answers the file for Q-Bench's server.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.eval.run.command import answer_questions
from llava.eval.run.flags import Defaults, make_parser
from llava.eval.run.inputs.questions import Question, find_image, name_image
from llava.eval.score.qbench import CHOOSE, make_prompt, read_entries

NAME = "model_vqa_qbench"
QUESTIONS = "./playground/data/qbench/llvisionqa_dev.json"


def read(args: argparse.Namespace) -> list[Question]:
    """Reads the questions that the flags name."""
    questions = []
    for index, entry in enumerate(read_entries(args.question_file)):
        text, image = make_prompt(entry, args.lang), entry["img_path"]
        file = find_image(args.image_folder, image)
        questions.append(Question(entry["question_id"], text, text, file, name_image(image), index=index))
    return questions


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = make_parser(NAME, "Answer Q-Bench.", Defaults(QUESTIONS, temperature=0.0))
    parser.add_argument(
        "--questions-file", type=Path, dest="question_file", default=Path(QUESTIONS), help="LLaVA's --question-file"
    )
    parser.add_argument("--lang", choices=tuple(CHOOSE), default="en", help="language of the questions (%(default)s)")
    return answer_questions(NAME, parser, read, argv)


if __name__ == "__main__":
    sys.exit(main())
