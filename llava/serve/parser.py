"""The command lines' parser, and how they end. Imports nothing heavy: commands without a model start at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from llava.serve.errors import told_in_full


class OneLineParser(argparse.ArgumentParser):
    """Reports a wrong flag in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def exit_code(program: str, work: Callable[[], None]) -> int:
    """Runs what a command does; what is wrong with its input becomes one line and exit code 2."""
    try:
        work()
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"{program}: error: {told_in_full(error)}", file=sys.stderr)
        return 2
    return 0
