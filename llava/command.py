"""The command lines' parser and runner: what is wrong with the input is one line on stderr and exit code 2.

Imports nothing heavy, so that commands without a model start at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pickle import UnpicklingError
from typing import NoReturn

from safetensors import SafetensorError

from llava.serve.errors import GenerationError

USER_ERRORS = (ValueError, TypeError, OSError, ImportError, RuntimeError, SafetensorError, UnpicklingError)
"""What a wrong flag, file or machine raises; anything else is a fault of the program and keeps its traceback."""


class OneLineParser(argparse.ArgumentParser):
    """Reports a wrong flag in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def run_command(
    program: str, work: Callable[[], int | None], *, debug: bool = False, interrupted: str | None = None
) -> int:
    """Runs a command's work and turns its failure into one line on stderr.

    Args:
        program: name that the line begins with.
        work: returns the exit code; None is 0.
        debug: let errors pass, with their tracebacks.
        interrupted: what to say after Ctrl-C; None says nothing.

    Returns:
        The exit code: that of `work`, 2 for one of `USER_ERRORS`, 130 after Ctrl-C.
    """
    try:
        return work() or 0
    except KeyboardInterrupt:
        if interrupted is not None:
            print(f"{program}: {interrupted}", file=sys.stderr)
        return 130
    except USER_ERRORS as error:
        if debug:
            raise
        print(f"{program}: error: {format_error(error)}", file=sys.stderr)
        return 2


def parse_and_run(
    parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], None], argv: Sequence[str] | None
) -> int:
    """Parses a command line and runs `command` on its flags, as `run_command` does."""
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: command(args))


def format_error(error: BaseException) -> str:
    """Formats an error in one line for the person who runs the program; a model's failure by its cause."""
    cause = error.__cause__ if isinstance(error, GenerationError) and not error.out_of_memory else None
    return " ".join(str(cause or error).split()) or type(error).__name__
