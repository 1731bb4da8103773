"""One run at a time: a lock on a file's name that ends with the process that holds it, however that ends.

Where the folder's file system has no locks, nothing is locked.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from llava.eval.run.jsonl import check_regular

logger = logging.getLogger(__name__)

HOLDER = "process "
"""How the text of a lock file begins."""

PATIENCE = 0.2
"""Seconds to try for: a lock whose holder takes it away just now is free at the second try."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def only_run(path: Path) -> Iterator[None]:
    """Keeps other runs away from PATH, which need not exist, by PATH.lock beside it.

    Raises:
        ValueError: another run is at it, or PATH.lock is a file of another kind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f"{path.name}.lock")
    check_regular(file)
    found = _read(file)
    if found and not found.startswith(HOLDER):
        raise ValueError(f"{file} is no lock of a run, and a run needs that name; name another file than {path}")
    lock = FileLock(file, timeout=PATIENCE, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{path} is being written by another run ({_read(file) or 'it has just begun'})") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logger.warning("%s cannot be locked (%s); let no other run write it", path, error.strerror)
    try:
        with suppress(PermissionError):  # on Windows nobody can write to a locked file
            file.write_text(f"{HOLDER}{os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        with suppress(PermissionError):  # Windows removes no open file; it stays, and harms nobody
            file.unlink(missing_ok=True)  # before the release: who waits for this very file then sees that it is gone
        lock.release()


def _read(file: Path) -> str:
    """The text of a lock file; empty where there is none, or the system lets nobody read it while it is locked."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, PermissionError):
        return ""
