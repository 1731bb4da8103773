"""The entry point of the commands that answer question files; the model's code is imported when one runs."""

from __future__ import annotations

from collections.abc import Sequence

from llava.command import OneLineParser, run_command
from llava.eval.run.flags import ReadQuestions

STOPPED = "stopped; the same command continues"
"""Printed after Ctrl-C."""


def answer_questions(
    name: str, parser: OneLineParser, read: ReadQuestions, argv: Sequence[str] | None, needs_tower: bool = True
) -> int:
    """Parses a command line and answers the questions that it names.

    Args:
        name: the command's name.
        parser: its flags.
        read: reads the questions that the flags name.
        argv: the command line.
        needs_tower: False where questions have no images, so that a text-only model may answer them.

    Returns:
        The exit code: 0, 1 if questions have no answer, 2 for an error, 130 after Ctrl-C.
    """
    args = parser.parse_args(argv)

    def answer() -> int:
        from llava.eval.run.batch_run import run

        return run(name, args, read, needs_tower)

    return run_command(name, answer, interrupted=STOPPED)
