"""A sweep that kills its process right after the second cell is on the disk."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from llava.eval.sweep import command


def main(argv: Sequence[str]) -> int:
    """Runs the sweep's command line."""
    sync, calls = os.fsync, []

    def fsync(file: int) -> None:
        sync(file)
        calls.append(file)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = fsync
    return command.main(argv)
