"""The process that decodes untrusted images, started by `llava.serve.decoding.pool`.

For each image it reads a header line and the file from stdin and writes a header line and RGB rows to stdout, until
stdin ends. Where the system allows it, it limits its own memory and processor time; its parent kills it at any other
limit.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from llava.command import OneLineParser, run_command
from llava.images import ImageError, ImageLimits, decode_image

try:
    import resource
except ImportError:  # Windows; the parent's time limit remains
    resource = None  # type: ignore[assignment]

OPENING_BYTES = 64 * 2**20
"""Memory for opening an image, on top of twice its file size; tag directories can expand to gigabytes."""
BYTES_PER_PIXEL = 16
"""Memory for decoding. Pillow keeps 4 bytes; a progressive JPEG needs 6 more, a mode conversion 4 or 8."""
STRIP_BYTES = 96 * 2**10  # below the size for which malloc maps new memory each time
NICENESS = 10  # the model's threads have priority


class Budget:
    """Limits on this process's memory and processor time, reset for each image."""

    def __init__(self) -> None:
        self.file_bytes = 0
        if resource is not None:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def begin(self, file_bytes: int, cpu_seconds: float) -> None:
        """Limits the memory for opening a file, and the processor time until the next call."""
        self.file_bytes = file_bytes
        if resource is not None:
            # The kernel kills a process that exceeds this; the signal is the reason that the parent reports.
            _limit(resource.RLIMIT_CPU, int(time.process_time() + cpu_seconds) + 1)
        self._bound_memory(0)

    def allow_pixels(self, pixels: int) -> None:
        """Raises the memory limit for the pixels of an image whose size is within the limits."""
        self._bound_memory(pixels)

    def _bound_memory(self, pixels: int) -> None:
        used = address_space()
        if resource is not None and used:
            _limit(resource.RLIMIT_AS, used + OPENING_BYTES + 2 * self.file_bytes + BYTES_PER_PIXEL * pixels)


def _limit(kind: int, soft: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def address_space() -> int:
    """Reads the size of this process's address space in bytes; 0 where the system does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def write_image(image: Image.Image, out: BinaryIO) -> None:
    """Writes an RGB image's rows a few at a time, so that no second copy of it is needed."""
    rows = max(1, STRIP_BYTES // (3 * image.width))
    for top in range(0, image.height, rows):
        out.write(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())


def answer(request: Mapping[str, Any], data: bytes, budget: Budget, given: BinaryIO, out: BinaryIO) -> None:
    """Decodes one file and writes the result, resized if the parent asks for it after reading the size."""
    image = None
    try:
        image = decode_image(data, ImageLimits(**request["limits"]), budget.allow_pixels)
        reply = {"size": image.size}
    except ImageError as error:
        reply = {"error": str(error)}
    except MemoryError:
        reply = {"error": "opening the image takes far more memory than an image of its size should"}
    except Exception as error:  # for the server's log: a decoder's own words may not reach a client
        reply = {"fault": f"{type(error).__name__}: {error}"}
    out.write(json.dumps(reply).encode() + b"\n")
    if image is not None and request["fits"]:
        out.flush()
        size = json.loads(given.readline())
        image = image if size is None else image.resize(size, Image.Resampling.BICUBIC)
    if image is not None:
        write_image(image, out)
    out.flush()


def decode_all() -> None:
    """Decodes until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the parent, which ends this process by closing stdin
    with suppress(OSError, AttributeError):
        os.nice(NICENESS)
    Image.init()  # loads the formats before the first image
    budget, given, out = Budget(), sys.stdin.buffer, sys.stdout.buffer
    while line := given.readline():
        request = json.loads(line)
        budget.begin(request["bytes"], request["cpu_seconds"])
        data = given.read(request["bytes"])
        if len(data) < request["bytes"]:
            return
        answer(request, data, budget, given, out)


def main(argv: Sequence[str] | None = None) -> int:
    """Decodes until stdin ends; returns the exit code."""
    OneLineParser(prog="decoding.process", description="Decode images for a server, from stdin to stdout.").parse_args(
        argv
    )
    return run_command("decoding.process", decode_all)


if __name__ == "__main__":
    sys.exit(main())
