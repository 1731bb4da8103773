"""The parser and runner of every command line: a user's mistake is one line on stderr and exit code 2.

Imports nothing heavy, so that `--help` and a wrong flag answer at once.
"""

from __future__ import annotations

import argparse
import codecs
import gc
import io
import os
import re
import select
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn
from urllib.parse import unquote

from safetensors import SafetensorError

BAR_DELAY = "2"
"""Seconds before libraries' progress bars appear, as for our own; tqdm reads the variable on import."""

THREADS_PAUSE = 0.1
"""Seconds in which the threads of a process group release what they hold, as a command ends."""

USER_ERRORS = (ValueError, TypeError, OSError, ImportError, RuntimeError, SafetensorError, UnpicklingError)
"""What a wrong flag, file or machine raises; anything else is a fault of the program and keeps its traceback."""


def escape(text: str) -> str:
    """Escapes what is not printable, such as a line feed, so that external text cannot forge log lines."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


class OneLineParser(argparse.ArgumentParser):
    """Reports a wrong flag in one line, without the usage text; refuses empty paths and URLs where a file is wanted."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register("type", Path, read_path)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses the command line; an unknown flag is named without its value, which may be a secret."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [
                text.partition("=")[0] if text.startswith("--") else text[:2] for text in unknown if text[:1] == "-"
            ]
            self.error(f"unrecognized arguments: {' '.join(flags or unknown)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        message = re.sub("^(ambiguous option: --[^= ]*)=.* (could match )", r"\1 \2", message, flags=re.DOTALL)
        self.exit(2, f"{self.prog}: error: {message}\n")


def read_path(text: str) -> Path:
    """Reads a flag that names a file or folder: what the type `Path` means to `OneLineParser`."""
    scheme, colon, _ = text.partition("://")
    if colon and re.fullmatch("[A-Za-z][A-Za-z0-9+.-]*", scheme):
        way_out = suggest_path(text) if scheme.lower() == "file" else "download it and give the file"
        raise argparse.ArgumentTypeError(f"{text} is a URL; {way_out}")
    return Path(read_name(text))


def suggest_path(url: str) -> str:
    """Formats the advice to give a path instead of a file: URL."""
    rest = unquote(url.partition(":")[2])
    if rest.startswith("//") and not rest.startswith("///"):  # it names a host
        return "give the path"
    return f"give the path, {rest.removeprefix('//')}"


def read_name(text: str) -> str:
    """Reads a flag that names a file, folder or model."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def names_folder(name: str) -> bool:
    """Whether a model's name can only be a path, and not an id of the hub."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name


def run_command(
    program: str, work: Callable[[], int | None], *, debug: bool = False, interrupted: str | None = None
) -> int:
    """Runs a command's work and turns its failure into one line on stderr; ends torch's process group, if it began one.

    Args:
        program: name that the line begins with.
        work: returns the exit code; None is 0.
        debug: let errors pass, with their tracebacks.
        interrupted: what to say after Ctrl-C; None says nothing.

    Returns:
        The exit code: that of `work`, 2 for one of `USER_ERRORS`, 130 after Ctrl-C, 141 where the reader of the output,
        such as `head`, has ended.
    """
    os.environ.setdefault("TQDM_DELAY", BAR_DELAY)
    escape_unencodable()
    try:
        code = work() or 0
        if sys.stdout is not None:  # it is None where a service started Python without one
            sys.stdout.flush()  # raises here, not at interpreter exit, if the pipe has no reader any more
        return code
    except KeyboardInterrupt:
        if interrupted is not None:
            print(f"{program}: {interrupted}", file=sys.stderr)
        return 130
    except USER_ERRORS as error:
        if isinstance(error, BrokenPipeError) and is_output_closed():
            return 141  # as a program that SIGPIPE ends
        if debug:
            raise
        print(f"{program}: error: {format_error(error)}", file=sys.stderr)
        return 2
    finally:
        end_process_group()


def escape_unencodable() -> None:
    """Lets stdout escape what its encoding lacks, as stderr does: an answer in Latin-1 may hold any sign."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        keeps_bytes = sys.stdout.errors == "surrogateescape"  # of file names, in the C locale
        codecs.register_error("bytes-or-backslash", write_byte_or_escape)
        with suppress(OSError):  # raised after the change, where a pipe has taken the place of a file
            sys.stdout.reconfigure(errors="bytes-or-backslash" if keeps_bytes else "backslashreplace")


def write_byte_or_escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Handles an error of encoding: writes bytes that were read as surrogates back, and escapes other signs."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def is_output_closed() -> bool:
    """Whether the reader of the standard output has gone; further output is then dropped."""
    try:
        poller, output = select.poll(), sys.stdout.fileno()
        poller.register(output, 0)
        closed = any(event & (select.POLLERR | select.POLLHUP) for _, event in poller.poll(0))
    except (AttributeError, OSError):  # Windows, or no file
        return False
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return closed


def end_process_group() -> None:
    """Ends the process group of torch that this process is in, if any, and its threads.

    A thread that releases a tensor while the interpreter ends would abort the process. Threads end with the last
    reference to the group, which a model in a cycle of objects may hold.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        # Collecting waits for the group's threads and holds Python's lock, which they take to release tensors.
        time.sleep(THREADS_PAUSE)
        gc.collect()


def format_error(error: BaseException) -> str:
    """Formats an error in one line: a model's failure by its cause, a DataLoader worker's by the last of its lines."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    full = getattr(error, "unredacted", error)  # what an error keeps from remote clients
    text = str(full).strip()
    if text.startswith("Caught ") and " in DataLoader worker process " in text:
        text = text.splitlines()[-1]
    return " ".join(text.split()) or type(full).__name__
