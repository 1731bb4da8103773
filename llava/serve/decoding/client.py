"""Starts decoder processes and exchanges images with them through pipes.

multiprocessing would import the server's main module, and torch with it, into every process that replaces a killed
one; these processes start in a fifth of a second.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

from PIL import Image

from llava.images import Fit, ImageLimits
from llava.serve.decoding.process import STRIP_BYTES

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PIPE_BYTES = 2**20

# No secrets: a hostile image that takes over the process finds none.
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR")


class ImageRefusedError(Exception):
    """A decoder process refused an image and can take the next one."""


class DecoderFailedError(Exception):
    """A decoder process failed on an image; the message has the error's type and words, for the server's log alone."""


def start_process() -> subprocess.Popen[bytes]:
    """Starts a decoder process; it ends when this process does."""
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, _import_path())), "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "llava.serve.decoding.process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # Pillow's warnings
        env=environment,
        cwd=Path(__file__).parent,  # -m imports from there first: the server's folder may hold a json.py
    )
    for pipe in (process.stdin, process.stdout):
        widen_pipe(pipe)
    return process


def widen_pipe(pipe: IO[bytes] | None) -> None:
    """Enlarges a pipe's buffer from 64 KiB, where the system can, so that an image is transferred in fewer turns."""
    if pipe is not None and fcntl is not None and hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):  # above this user's limit
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _import_path() -> list[str | Path]:
    """Lists the import path of this process, for a source tree that is not installed."""
    return [Path(__file__).parents[3], *(Path(entry).absolute() for entry in filter(None, sys.path))]


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and waits for its end."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):  # the process had not read everything
                pipe.close()


def exchange(
    process: subprocess.Popen[bytes], data: bytes, limits: ImageLimits, cpu_seconds: float, fit: Fit | None = None
) -> Image.Image:
    """Sends a file to a decoder process and reads the image back, resized if `fit` makes it smaller.

    Raises:
        ImageRefusedError: the process refused the file; the message says why.
        DecoderFailedError: an error that it does not expect; the process should be replaced.
        EOFError, OSError: the process has ended.
        RuntimeError: the process was started without pipes.
    """
    given, received = process.stdin, process.stdout
    if given is None or received is None:
        raise RuntimeError("the decoder process has no pipes to and from it; start it by start_process")
    request = {"bytes": len(data), "limits": asdict(limits), "cpu_seconds": cpu_seconds, "fits": fit is not None}
    given.write(json.dumps(request).encode() + b"\n")
    given.write(data)
    given.flush()
    line = received.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    reply = json.loads(line)
    if "error" in reply:
        raise ImageRefusedError(reply["error"])
    if "fault" in reply:
        raise DecoderFailedError(reply["fault"])
    width, height = reply["size"]
    if fit is not None:
        size = fit(width, height)
        smaller = size[0] * size[1] < width * height
        given.write(json.dumps(size if smaller else None).encode() + b"\n")
        given.flush()
        width, height = size if smaller else (width, height)
    image = Image.new("RGB", (width, height))
    rows = max(1, STRIP_BYTES // (3 * width))
    for top in range(0, height, rows):
        count = min(rows, height - top)
        strip = received.read(3 * width * count)
        if len(strip) < 3 * width * count:
            raise EOFError
        image.paste(Image.frombuffer("RGB", (width, count), strip, "raw", "RGB", 0, 1), (0, top))
    return image
