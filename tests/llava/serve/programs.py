"""Runs servers as separate processes for tests.

Each is forked from a process that has imported the servers' modules already, since that takes longest.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import IO

DEADLINE = 600  # seconds; a test that waits longer has failed
CONTROLLER, WORKER = "llava.serve.controller", "tests.llava.serve.slow_worker"
PRELOADED = [
    CONTROLLER,
    WORKER,
    "llava.model.builder",
    "llava.serve.http.server",
    "llava.serve.workers.controller_app",
    "llava.serve.workers.heartbeat",
    "llava.serve.workers.worker_app",
]
PROCESSES = multiprocessing.get_context("forkserver")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def has_ipv6() -> bool:
    """Whether this machine has IPv6's loopback address."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def run_program(module: str, argv: list[str], output: Connection | IO[bytes]) -> None:
    """Runs a program's main in this process, with its output to a pipe or file."""
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output.fileno(), stream.fileno())
    sys.exit(importlib.import_module(module).main(argv))


def run_logged(module: str, argv: list[str], log: str) -> None:
    """Runs a program's main in this process, with its output to a file."""
    with open(log, "ab") as output:
        run_program(module, argv, output)


class ForkedProcess:
    """`python -m MODULE FLAG...` with its output in a file, and what `subprocess.Popen` has that the soak run uses."""

    def __init__(self, command: list[str], log: str) -> None:
        PROCESSES.set_forkserver_preload(PRELOADED)
        self._process = PROCESSES.Process(target=run_logged, args=(command[2], command[3:], log))
        self._process.start()
        self.pid = self._process.pid or 0

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int | None:
        self._process.join(timeout)
        return self.poll()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


class Program:
    """A server in a separate process."""

    def __init__(self, module: str, port: int, *flags: str) -> None:
        self.url = f"http://localhost:{port}"
        PROCESSES.set_forkserver_preload(PRELOADED)
        words, output = PROCESSES.Pipe(duplex=False)
        argv = ["--port", str(port), *flags]
        self.process = PROCESSES.Process(target=run_program, args=(module, argv, output))
        self.process.start()
        output.close()
        self.lines: list[str] = []
        self.news = threading.Condition()
        threading.Thread(target=self._read, args=(words,), daemon=True).start()

    def _read(self, words: Connection) -> None:
        with words, open(words.fileno(), closefd=False) as lines:
            for line in lines:
                with self.news:
                    self.lines.append(line)
                    self.news.notify_all()
        with self.news:
            self.lines.append("(the program has ended)")
            self.news.notify_all()

    def says(self, text: str, times: int = 1) -> None:
        """Waits until the program has logged a text `times` times."""

        def count() -> int:
            return sum(text in line for line in self.lines)

        with self.news:
            found = self.news.wait_for(lambda: count() >= times, DEADLINE)
        assert found, "".join(self.lines)

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def has_ended(self) -> bool:
        """Waits for the end; false once the deadline is past."""
        self.process.join(DEADLINE)
        return self.process.exitcode is not None


@contextmanager
def running(module: str, port: int, *flags: str) -> Iterator[Program]:
    program = Program(module, port, *flags)
    try:
        yield program
    finally:
        program.process.kill()
        assert program.has_ended()


def eventually(state: Callable[[], bool]) -> None:
    """Waits until a condition holds, at most until the deadline."""
    until = time.monotonic() + DEADLINE
    wait = threading.Event()
    while not state():
        assert time.monotonic() < until
        wait.wait(0.02)
