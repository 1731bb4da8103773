"""Flag types and path checks of the command lines, beside the parser and runner of `qlip.command`.

Imports nothing heavy, so that commands without a model start at once.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qlip.command import USER_ERRORS, OneLineParser, format_error, names_folder, read_name, run_command
from qlip.files import check_new_folder, is_same_file, written_whole

__all__ = [
    "USER_ERRORS",
    "OneLineParser",
    "add_length_flag",
    "check_new_folder",
    "check_outputs",
    "exit_on_interrupt",
    "format_error",
    "integer",
    "names_folder",
    "parse_and_run",
    "read_name",
    "real",
    "require_parent",
    "run_command",
    "written_whole",
]


def integer(least: int = 1, most: int | None = None) -> Callable[[str], int]:
    """Makes the type of a flag that takes an integer, `least` to `most`; the parser names the flag in its message."""
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed; it must be an integer {bounds}")
        return value

    return read


def real(
    least: float = 0.0, most: float = math.inf, *, above: bool = False, infinite: bool = False
) -> Callable[[str], float]:
    """Makes the type of a flag that takes a number.

    Args:
        least: the smallest.
        most: the largest.
        above: `least` itself is not allowed.
        infinite: infinity is.
    """
    bounds = f"above {least:g}" if above else f"of at least {least:g}"
    if most < math.inf:
        bounds += f" and at most {most:g}"

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        allowed = least < value <= most if above else least <= value <= most
        if not allowed or (math.isinf(value) and not infinite):
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed; it must be a number {bounds}")
        return value

    return read


def add_length_flag(parser: argparse.ArgumentParser, *names: str, default: int) -> None:
    """Adds the flag of the longest answer; `shorten` of the parsed flags is False where it was given."""
    parser.set_defaults(shorten=True)
    parser.add_argument(
        *names,
        type=integer(),
        default=default,
        action=_StoreLength,
        help=f"longest answer, in tokens (default: {default}, or what the model's context leaves)",
    )


class _StoreLength(argparse.Action):
    """Stores a length, and that it was given."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, values)
        namespace.shorten = False


def check_outputs(args: argparse.Namespace, *outputs: str) -> None:
    """Raises ValueError if a file that a flag says to write is one that another flag says to read or write.

    Args:
        args: the parsed flags; those that are paths, and not among `outputs`, are read.
        outputs: names of the attributes that hold files to write; None where a flag is not given.
    """
    given = {name: value if isinstance(value, list) else [value] for name, value in vars(args).items()}
    for place, output in enumerate(outputs):
        written = getattr(args, output)
        others = given.keys() - set(outputs[place:])
        for name in sorted(others) if written else ():
            for other in given[name]:
                if isinstance(other, Path) and _leads_to(Path(written), other):
                    flags = [f"--{flag.replace('_', '-')}" for flag in (output, name)]
                    raise ValueError(f"{flags[0]} {written} is the file of {flags[1]}; name another file to write")


def _leads_to(first: Path, second: Path) -> bool:
    """Whether two paths lead to one file, regular or absent; a device such as /dev/null takes several outputs."""
    if first.exists():
        return first.is_file() and is_same_file(first, second)
    return os.path.realpath(first) == os.path.realpath(second)


def require_parent(out: Path) -> None:
    """Raises FileNotFoundError unless the folder exists in which a file will be written, before any work is done."""
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"{out} can't be written: there is no folder {out.parent}")


def parse_and_run(
    parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], None], argv: Sequence[str] | None
) -> int:
    """Parses a command line and runs `command` on its flags, as `run_command` does."""
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: command(args))


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Lets Ctrl-C end the process at once with code 130, as long as the context is open.

    Raised as a KeyboardInterrupt, it would take effect only when the model's thread is done with its step, since Python
    waits for threads before it exits. Does nothing outside the main thread, or where interrupts are ignored.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
