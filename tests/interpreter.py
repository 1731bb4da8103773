"""Runs commands without the imports of a new interpreter for each.

`start` writes an executable that replaces `python` in a shell script. It sends its arguments to this process, which
calls the `main` of the module or script that they name, and returns output and exit code. `start_process` forks a
process of its own, which can be killed, from a server that has the model's code loaded.
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
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path

CLIENT = """#!{python} -IS
import json, socket, sys
with socket.socket(socket.AF_UNIX) as link:
    link.connect({address!r})
    link.sendall(json.dumps(sys.argv[1:]).encode() + b"\\n")
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


@contextmanager
def start(folder: Path) -> Iterator[Path]:
    """The executable, as long as the context is open; one command at a time."""
    one_at_a_time = threading.Lock()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with one_at_a_time:
                done = run(json.loads(self.rfile.readline()))
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


PRELOADED = ["llava.eval.run.batch_run", "llava.eval.sweep.measure", "torch.distributed", "accelerate"]


def start_process(module: str, *flags: str, stderr: Path | None = None, **environment: str) -> BaseProcess:
    """Starts `python -m module FLAGS` as a fork of a process that has imported it already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_run_main, args=(module, flags, stderr, {**os.environ, **environment}))
    process.start()
    return process


def _run_main(module: str, flags: list[str], stderr: Path | None, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    with open(stderr or os.devnull, "w", encoding="utf-8") as sys.stderr:
        sys.exit(import_module(module).main(list(flags)))
