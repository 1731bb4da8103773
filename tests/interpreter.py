"""Runs commands without the imports of a new interpreter for each.

`start` writes an executable that replaces `python` in a shell script. It sends its arguments to this process, which
calls the `main` of the module or script that they name, and returns output and exit code; `-u` changes nothing, and
code after `-c` runs in a new interpreter. `fork_main` runs a `main` in a separate process.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import socketserver
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

CLIENT = """#!{python} -IS
import json, os, socket, sys
if sys.argv[1] == "-c":
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as link:
    link.connect({address!r})
    arguments = sys.argv[2:] if sys.argv[1] == "-u" else sys.argv[1:]
    request = {{"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}}
    link.sendall(json.dumps(request).encode() + b"\\n")
    done = json.loads(link.makefile().readline())
sys.stdout.write(done["out"])
sys.stderr.write(done["err"])
sys.exit(done["code"])
"""


def run(arguments: list[str]) -> dict[str, str | int]:
    """`-m package.module FLAG...` or `path/of/script.py FLAG...`."""
    module, flags = (arguments[1], arguments[2:]) if arguments[0] == "-m" else (arguments[0], arguments[1:])
    if arguments[0] != "-m":
        module = f"scripts.{Path(module).stem}"
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = import_module(module).main(flags)
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        except Exception:
            traceback.print_exc()
            code = 1
    return {"out": out.getvalue(), "err": err.getvalue(), "code": code}


def run_in_process(arguments: list[str], folder: str, environment: dict[str, str]) -> dict[str, str | int]:
    """`run` in a separate process, in the client's folder and with its environment."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        os.chdir(folder)
        sender.send(run(arguments))

    process = fork(work, **environment)
    sender.close()
    done = receiver.recv()
    process.join()
    return done


@contextmanager
def start(folder: Path, processes: bool = False) -> Iterator[Path]:
    """The executable, as long as the context is open.

    Args:
        folder: where it is written.
        processes: run each command in a separate process, in parallel, in its client's folder and with its environment;
            else in this one, one at a time.
    """
    one_at_a_time = threading.Lock()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            request = json.loads(self.rfile.readline())
            if processes:
                done = run_in_process(**request)
            else:
                with one_at_a_time:
                    done = run(request["arguments"])
            self.wfile.write(json.dumps(done).encode() + b"\n")

    address = str(folder / "socket")
    client = folder / "python"
    client.write_text(CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)
    with socketserver.ThreadingUnixStreamServer(address, Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield client
        finally:
            server.shutdown()
            thread.join()


def fork(work: Callable[[], object], **environment: str) -> BaseProcess:
    """Starts a process that has everything imported; its exit code is what `work` returns."""

    def run_work() -> None:
        os.environ.update(environment)
        AcceleratorState._reset_state(reset_partial_state=True)  # a training in this process has set it
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        sys.exit(work())

    process = multiprocessing.get_context("fork").Process(target=run_work)
    process.start()
    return process


def fork_main(
    main: Callable[[list[str]], int], *flags: str, stderr: Path | None = None, **environment: str
) -> BaseProcess:
    """Starts a command's `main` in a separate process, which may be killed."""

    def work() -> int:
        with open(stderr or os.devnull, "w", encoding="utf-8") as sys.stderr:
            return main(list(flags))

    return fork(work, **environment)
