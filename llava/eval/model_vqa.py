"""Answers a file of open questions about images: `python -m llava.eval.model_vqa`.

LLaVA's command for open questions, with its flags and formats; samples at temperature 0.2 by default.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llava.eval.model_vqa_loader import read
from llava.eval.run.command import answer_questions
from llava.eval.run.flags import Defaults, make_parser

NAME = "model_vqa"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    return answer_questions(NAME, make_parser(NAME, "Answer a file of open questions.", Defaults()), read, argv)


if __name__ == "__main__":
    sys.exit(main())
