"""Servers as programs of their own, and the report of what they kept, for the soak run."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

DEADLINE = 120.0  # seconds for anything to become true


@dataclass
class Report:
    """What was promised and seen."""

    measured: bool = True
    """Whether figures that depend on the machine count."""
    failures: list[str] = field(default_factory=list)

    def check(self, holds: bool, promise: str, seen: object = "") -> None:
        """Prints one line, and remembers a broken promise."""
        print(f"{'ok  ' if holds else 'FAIL'}  {promise}{f' ({seen})' if seen != '' else ''}", flush=True)
        if not holds:
            self.failures.append(promise)

    def measure(self, holds: bool, promise: str, seen: object = "") -> None:
        """Checks a figure, or only shows it where figures do not count."""
        if self.measured:
            self.check(holds, promise, seen)
        else:
            print(f"seen  {promise}{f' ({seen})' if seen != '' else ''}", flush=True)


class Program:
    """A server in a process of its own, which can be killed and started again at the same address."""

    def __init__(self, module: str, *flags: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.url = f"http://localhost:{port}"
        self.command = [sys.executable, "-m", module, "--port", str(port), *flags]
        self.start()

    def start(self) -> None:
        """Starts it; `answers` says when it is up."""
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends it and waits."""
        self.process.send_signal(how)
        self.process.wait(DEADLINE)

    def family(self) -> list[psutil.Process]:
        """The process and those that decode its images."""
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    def memory(self) -> int:
        """Resident bytes, of the processes that decode its images too."""
        total = 0
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def descriptors(self) -> int:
        """Its open files and sockets."""
        return psutil.Process(self.process.pid).num_fds()
