"""Ends a decoder process that hangs: by its processor time, since a busy machine gives good images little of it."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKS = 4  # checks of a process within the time that it may idle


def processor_seconds(process: int) -> float | None:
    """Reads the processor time that a process has taken, in seconds; None where the system does not report it."""
    try:
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None


@contextmanager
def ended_if_it_hangs(process: subprocess.Popen[bytes], idle_seconds: float, wall_seconds: float) -> Iterator[None]:
    """Kills a process that takes no processor time for a while, or that is not done at all after a long time.

    Args:
        process: Works on one image while the context is open.
        idle_seconds: Elapsed time without processor time; where the system does not report it, elapsed time.
        wall_seconds: Elapsed time.
    """
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(process, idle_seconds, wall_seconds, done), daemon=True)
    watch.start()
    try:
        yield
    finally:
        done.set()


def _watch(process: subprocess.Popen[bytes], idle_seconds: float, wall_seconds: float, done: threading.Event) -> None:
    start = active = time.monotonic()
    used = processor_seconds(process.pid)
    while not done.wait(min(idle_seconds / CHECKS, wall_seconds)):
        before, used, now = used, processor_seconds(process.pid), time.monotonic()
        if before is not None and used is not None and used > before:
            active = now
        if now - active >= idle_seconds or now - start >= wall_seconds:
            process.kill()
            return
