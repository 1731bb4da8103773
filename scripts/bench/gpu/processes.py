"""Runs one part in a separate process, within its time limit; what it has reported by then is kept."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from scripts.bench.gpu.parts import Part, Row, read_row

ROOT = Path(__file__).parents[3]


def part_command(part: Part, model: str, device: str, turns: int | None) -> list[str]:
    """Builds the command line of a part's process.

    Args:
        part: the part.
        model: of the benchmarks.
        device: where they run.
        turns: timed turns; None for the part's own number.
    """
    command = [sys.executable, "-u", "-m", "scripts.bench.gpu", "--part", part.name, "--model", model]
    return [*command, "--device", device, "--turns", str(turns or part.turns)]


class PartProcess:
    """A process that imports its part's module at once, and begins the work when `finish` is called."""

    def __init__(self, command: Sequence[str]) -> None:
        """Starts the process."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
            start_new_session=True,  # a part's processes are stopped together
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def finish(self, limit: float) -> tuple[str, list[Row]]:
        """Lets the part work for at most `limit` seconds; prints its output as it comes.

        Returns:
            "done", or what went wrong; and the rows that it has reported, the last one of each key.
        """
        deadline = time.monotonic() + limit
        rows: dict[str, Row] = {}
        self._begin()
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self.stop()
                return f"stopped after {limit:.0f} s", list(rows.values())
            if line is None:
                break
            print(line, flush=True)
            if row := read_row(line):
                rows[row["key"]] = row
        code = self._process.wait()
        self.stop()
        return "done" if code == 0 else f"failed with exit code {code}", list(rows.values())

    def stop(self) -> None:
        """Ends the process and those that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _begin(self) -> None:
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # it has failed already; its exit code says so
                self._process.stdin.write("begin\n")
                self._process.stdin.flush()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)
