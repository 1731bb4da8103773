"""Runs the commands that a shell script starts without a new interpreter, and its imports, for each of them.

`start` writes an executable that stands in for `python` in a script. It hands its arguments to this process, which
calls the `main` of the module or script that they name, and gives back output and exit code.
"""

from __future__ import annotations

import io
import json
import socketserver
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
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
