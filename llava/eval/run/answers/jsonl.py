"""Append-only files of JSON lines that survive a crash.

A crash may leave a truncated line, blanks or NULs at the end of such a file. Reading ignores them and changes nothing;
the caller, who knows whether the file is its own, repairs it.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llava.eval.score.rows import Row
from qlip.files import replacing

BLANK = b"\0 \t\r\n"
"""What may follow the last row; after a power failure file systems leave NULs for bytes that did not reach the disk."""


@dataclass(frozen=True)
class Rows:
    """The content of a file of rows."""

    numbered: list[tuple[int, Row]]
    """Each row with the number of its line."""

    content: bytes
    """The lines of these rows, as the file has them."""

    whole: bool
    """Whether the file holds nothing else, so that a row can simply be appended to it."""


def read_rows(path: Path, kind: str, is_row: Callable[[Row], bool], is_row_start: Callable[[bytes], bool]) -> Rows:
    """Reads a file of rows; a missing file has none.

    Args:
        path: the file.
        kind: name of a row with its article, for messages.
        is_row: whether an object is a row.
        is_row_start: whether bytes are the beginning of a row's line; only such a last line may be truncated.

    Raises:
        ValueError: the file holds something else.
    """
    check_regular(path)
    if not path.exists():
        return Rows([], b"", True)
    content = path.read_bytes()
    lines = content.rstrip(BLANK).split(b"\n")
    numbered: list[tuple[int, Row]] = []
    kept = []
    for number, line in enumerate(lines, start=1):
        if not line.strip(b" \t\r"):  # of JSON; a vertical tab or a page break is of another file
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # RecursionError: lists nested a thousand deep
            if number == len(lines) and is_row_start(line):
                break
            row = None
        if not (isinstance(row, dict) and is_row(row)):
            raise ValueError(f"{path}:{number} is not {kind}, so the file stays as it is")
        numbered.append((number, row))
        kept.append(line + b"\n")
    whole = b"".join(kept)
    return Rows(numbered, whole, whole == content)


def check_regular(path: Path) -> None:
    """Raises ValueError if the path is a folder, a pipe or a device."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise ValueError(f"{path} is {kinds.get(stat.S_IFMT(mode), 'a device')}; it must be a regular file")


def append_row(path: Path, row: Row) -> None:
    """Appends a row and waits until it is on the disk."""
    append_rows(path, [row])


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Appends rows and waits until they are on the disk."""
    with path.open("ab") as file, name_write_errors(path):
        _write(file.fileno(), format_rows(rows))


def replace(path: Path, content: bytes) -> None:
    """Replaces a file's content atomically; a crash leaves the old one."""
    with replacing(path) as new:
        with new.open("xb") as file, name_write_errors(path):
            _write(file.fileno(), content)
        if path.exists():
            shutil.copymode(path, new)


@contextmanager
def name_write_errors(path: Path) -> Iterator[None]:
    """Names the file in the system's errors while it is written, such as of a full disk, and says how to continue."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror}; what was finished before is kept, and the same command continues"
        raise OSError(error.errno, reason, str(path)) from None


def format_rows(rows: Iterable[Row]) -> bytes:
    """Formats rows as lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
    os.fsync(descriptor)
