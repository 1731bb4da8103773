"""Answers V* Bench by the likelihood of its options: `python -m llava.eval.vstar_likelihood`.

The chosen option's letter is written as the answer, so that `llava.eval.eval_vstar` scores it like a generated one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OneLineParser, run_command
from llava.eval.run.command import STOPPED
from llava.eval.run.flags import add_input_flags, add_resume_flag
from llava.serve.loading import add_model_flags

NAME = "vstar_likelihood"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    description = "Answer V* Bench by the likelihood of its options."
    parser = OneLineParser(prog=NAME, description=description, allow_abbrev=False)
    add_model_flags(parser)
    parser.add_argument("--question-file", type=Path, required=True, help="V* Bench's test_questions.jsonl")
    parser.add_argument("--image-folder", type=Path, required=True, help="folder of the images")
    parser.add_argument("--answers-file", type=Path, required=True, help="the answers")
    add_input_flags(parser)
    add_resume_flag(parser)
    args = parser.parse_args(argv)

    def answer() -> int:
        from llava.eval.run.likelihood import run

        return run(NAME, args)

    return run_command(NAME, answer, interrupted=STOPPED)


if __name__ == "__main__":
    sys.exit(main())
