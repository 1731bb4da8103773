"""Servers in separate processes, for the soak run."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress

import psutil

DEADLINE = 120.0  # seconds within which a condition must become true


def start_process(command: Sequence[str], log: str) -> subprocess.Popen[bytes]:
    """Starts a command whose errors go to a file."""
    with open(log, "ab") as errors:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)


class Program:
    """A server in a separate process, which can be killed and started again at the same address."""

    def __init__(self, module: str, *flags: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.url = f"http://localhost:{port}"
        self.command = [sys.executable, "-m", module, "--port", str(port), *flags]
        self.start()

    def start(self) -> None:
        """Starts it; it takes a while until it answers."""
        self.log = tempfile.NamedTemporaryFile()  # noqa: SIM115 (open as long as the process)
        self.process = start_process(self.command, self.log.name)

    def last_words(self) -> str:
        """Reads the end of what it wrote to stderr."""
        self.log.seek(0)
        return self.log.read().decode(errors="replace").strip()[-500:]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Sends a signal that ends it, and waits."""
        self.process.send_signal(how)
        self.process.wait(DEADLINE)

    def family(self) -> list[psutil.Process]:
        """Lists the process and those that decode its images."""
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    def memory(self) -> int:
        """Measures resident bytes, including the processes that decode its images."""
        total = 0
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def descriptors(self) -> int:
        """Counts open files and sockets, apart from the two pipes to each process that decodes images."""
        process = psutil.Process(self.process.pid)
        return process.num_fds() - 2 * len(process.children())
