"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4


@contextmanager
def replacing(file: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `file` and renames it to `file` when the block succeeds.

    A crash or an error leaves the old file; after an error the temporary file is deleted.
    """
    path = Path(file)
    new = path.with_name(f".{path.name}.{uuid4().hex[:8]}.new")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def check_output(name: str, out: Path, inputs: Iterable[Path] = ()) -> None:
    """Checks that a file can be written, before any work is done.

    Args:
        name: of the flag or setting, for the error.
        out: the file; its folder may be absent.
        inputs: files that are read.

    Raises:
        IsADirectoryError: it is a folder.
        PermissionError: its folder is not writable.
        ValueError: it is one of the files that are read.
    """
    if out.is_dir():
        raise IsADirectoryError(f"{name} {out} is a folder; name a file")
    check_not_read(name, out, inputs)
    place = next(folder for folder in out.absolute().parents if folder.exists())
    if not os.access(place, os.W_OK):
        raise PermissionError(f"{name} {out} can't be written: {place} is not writable")


def check_not_read(name: str, out: Path, inputs: Iterable[Path]) -> None:
    """Raises ValueError if a file to write, that of the flag or setting `name`, is one of the files that are read."""
    if any(is_same_file(out, path) for path in inputs):
        raise ValueError(f"{name} {out} is one of the files that are read; name another file to write")


def is_same_file(first: Path, second: Path) -> bool:
    """Whether two paths lead to one existing file."""
    return first.exists() and second.exists() and first.samefile(second)


def check_new_folder(out: Path) -> None:
    """Raises FileExistsError unless `out` is absent or an empty folder."""
    if out.is_dir() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; name another folder, or empty it")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; name a folder")


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """Yields a new folder to write into; its files move to `out` when the block ends without an error.

    Args:
        out: the target folder; absent or empty, and left so after an error.
    """
    home = out if out.is_dir() else out.parent  # an empty `out` may be a mount, which nothing can be renamed to
    home.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".partial-", dir=home) as partial:
        folder = Path(partial) / "whole"
        folder.mkdir()
        yield folder
        if out.is_dir():
            for file in folder.iterdir():
                file.rename(out / file.name)
        else:
            folder.rename(out)
