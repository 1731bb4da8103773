"""One run at a time: a lock on a file's name that ends with the process that holds it, however that ends.

Where the system or the folder's file system has no such locks, nothing is locked.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)


@contextmanager
def only_run(path: Path) -> Iterator[None]:
    """Keeps other runs away from PATH, which need not exist, by PATH.lock beside it.

    Raises:
        ValueError: another run is at it.
    """
    if sys.platform == "win32":
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.lock")
    while True:
        with lock.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read() or "it has just begun"
                raise ValueError(f"{path} is being written by another run ({holder})") from None
            except OSError as error:
                logger.warning("%s cannot be locked (%s); let no other run write it", path, error.strerror)
            if not _is_at(file, lock):
                continue  # its holder has just taken it away
            try:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}")
                file.flush()
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _is_at(file: TextIO, path: Path) -> bool:
    """Whether an open file is the one that a path leads to."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
