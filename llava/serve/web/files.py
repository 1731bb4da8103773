"""The folder of the page's pictures: removed when its process ends, and later where the process was killed."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from types import FrameType

from filelock import FileLock, Timeout

PREFIX = "llava-page-"
LOCK = ".lock"  # the system releases it when the process ends in any way
VARIABLE = "GRADIO_TEMP_DIR"


@contextmanager
def own_files() -> Iterator[None]:
    """Gives this server a folder for its pictures, unless the variable names one.

    Gradio names files by their content, and a server that ends deletes its own: in a shared folder also those that
    another server on the machine still shows.
    """
    if os.environ.get(VARIABLE):
        yield
        return
    remove_abandoned(Path(gettempdir()))
    folder = Path(mkdtemp(prefix=PREFIX))
    lock = FileLock(folder / LOCK)
    lock.acquire()
    os.environ[VARIABLE] = str(folder)  # also for requests that are still answered while this process ends
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # and for what they write
    try:
        yield
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """Removes the folders of this user's servers that were killed. Folders without a lock file are left alone."""
    for file in parent.glob(f"{PREFIX}*/{LOCK}"):
        folder = file.parent
        with suppress(OSError, Timeout):  # held, another user's, or removed by another server meanwhile
            if folder.is_symlink() or file.is_symlink() or not _is_own(folder):
                continue
            with FileLock(file, timeout=0):
                shutil.rmtree(folder)


def _is_own(folder: Path) -> bool:
    return not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()


@contextmanager
def exit_at_sigterm() -> Iterator[None]:
    """Makes SIGTERM end this process as Ctrl-C does, by way of its `finally` blocks; its exit code is 143."""
    if threading.current_thread() is not threading.main_thread():  # only there Python sets handlers
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
