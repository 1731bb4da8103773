"""Lets one run at a time write a file; the lock ends with the process that holds it, even after a crash.

On a file system without locks nothing is locked.
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

from llava.eval.run.answers.jsonl import check_regular, name_write_errors

logger = logging.getLogger(__name__)

HOLDER = "process "
"""First word of a lock file's text."""

TIMEOUT = 0.2
"""Seconds to try for; a lock that its holder removes at this moment is free on the second try."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def only_run(path: Path) -> Iterator[None]:
    """Locks PATH, which need not exist, by PATH.lock beside it.

    Raises:
        ValueError: another run holds the lock, or PATH.lock is another program's file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f"{path.name}.lock")
    check_regular(file)
    found = _read(file)
    if found and not found.startswith(HOLDER):
        raise ValueError(f"{file} is not a lock of a run, and a run needs that name; name another file than {path}")
    lock = FileLock(file, timeout=TIMEOUT, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{path} is being written by another run ({_read(file) or 'it has just begun'})") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logger.warning("%s cannot be locked (%s); let no other run write it", path, error.strerror)
    try:
        with suppress(PermissionError), name_write_errors(file):  # Windows lets no one write to a locked file
            file.write_text(f"{HOLDER}{os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        with suppress(PermissionError):  # Windows removes no open file; a leftover does no harm
            file.unlink(missing_ok=True)  # before the release, so that a run waiting for this file sees it is gone
        lock.release()


def _read(file: Path) -> str:
    """Reads a lock file; empty where there is none, or where the system forbids reading a locked file."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, PermissionError):
        return ""
