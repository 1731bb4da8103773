"""Decodes untrusted images in a few processes that can be killed, so that no file costs a server its memory or threads.

multiprocessing and its like would import the server's main module, and torch with it, into each process that replaces
a killed one; these processes start in a fifth of a second.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import IO

from PIL import Image

from llava.images import DEFAULT_LIMITS, Fit, ImageError, ImageLimits, ImageOpener
from llava.serve.decoding.process import STRIP_BYTES
from llava.serve.http.failures import RequestError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

PROCESSES = 8  # more than cores, so that a few slow images leave some for the others; started when they are needed
CPU_SECONDS = 5.0
WALL_SECONDS = 8.0
PIPE_BYTES = 2**20
ENDED_BY_A_LIMIT = {-getattr(signal, name) for name in ("SIGXCPU", "SIGKILL") if hasattr(signal, name)}

# No secrets: what a hostile image might take over has nothing to tell.
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR")


def client_gone() -> RequestError:
    """Makes the error of an image that nobody waits for any more."""
    return RequestError(499, "client_gone", "the client has gone")


class Cancellation:
    """Ends the decoding of one request's images, from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """Kills the process that decodes now; what comes later is not begun."""
        with self._lock:
            self.cancelled = True
            if self._process is not None:
                self._process.kill()

    def watch(self, process: subprocess.Popen[bytes] | None) -> None:
        """Notes which process decodes now; None when it has finished.

        Raises:
            RequestError: `cancel` was called.
        """
        with self._lock:
            self._process = process
            if self.cancelled and process is not None:
                self._process = None
                raise client_gone()


class DecoderPool:
    """Processes that decode images; one that passes a limit is killed and replaced."""

    def __init__(self, size: int, cpu_seconds: float = CPU_SECONDS, wall_seconds: float = WALL_SECONDS) -> None:
        """
        Args:
            size: Most images decoded at a time.
            cpu_seconds: Processor time that an image may take.
            wall_seconds: Time that it may take by the clock, and again to wait for its turn.
        """
        self.cpu_seconds, self.wall_seconds = cpu_seconds, wall_seconds
        self._idle: queue.LifoQueue[subprocess.Popen[bytes] | None] = queue.LifoQueue()
        for _ in range(size):
            self._idle.put(None)  # started with the first image
        self._closed = False

    def decode(
        self,
        data: bytes,
        limits: ImageLimits = DEFAULT_LIMITS,
        cancellation: Cancellation | None = None,
        fit: Fit | None = None,
    ) -> Image.Image:
        """Decodes an image file as `llava.images.decode_image`; blocks the calling thread.

        Args:
            data: The file.
            limits: What it may cost.
            cancellation: Ends it.
            fit: Says what size to resize it to if that makes it smaller, so that less has to cross to this process.

        Raises:
            ImageError: the file is no image, broken, or beyond the limits, those on time and memory included.
            RequestError: all processes were busy for too long, or `cancellation` was asked for.
        """
        limits.check_bytes(len(data))
        cancellation = cancellation or Cancellation()
        try:
            process = self._idle.get(timeout=self.wall_seconds)
        except queue.Empty:
            raise RequestError(503, "busy", "too many images are being opened; try again in some seconds", 5) from None
        healthy = True
        try:
            if process is None or process.poll() is not None:
                process = start_process()
            cancellation.watch(process)
            healthy = False  # until the exchange has come to its end
            image = self._exchange(process, data, limits, cancellation, fit)
            healthy = True
            return image
        except _Refused as error:
            healthy = True
            raise ImageError(str(error)) from None
        finally:
            cancellation.watch(None)
            self._release(process, healthy)

    def close(self) -> None:
        """Ends the processes that are idle, and those that become so."""
        self._closed = True
        while True:
            try:
                process = self._idle.get_nowait()
            except queue.Empty:
                return
            if process is not None:
                end_process(process)

    def _exchange(
        self,
        process: subprocess.Popen[bytes],
        data: bytes,
        limits: ImageLimits,
        cancellation: Cancellation,
        fit: Fit | None,
    ) -> Image.Image:
        timer = threading.Timer(self.wall_seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            return exchange(process, data, limits, self.cpu_seconds, fit)
        except (EOFError, OSError):  # killed, by whomever
            if cancellation.cancelled:
                raise client_gone() from None
            raise self._explain_end(process) from None
        finally:
            timer.cancel()

    def _explain_end(self, process: subprocess.Popen[bytes]) -> ImageError:
        code = process.wait()
        logger.warning("an image ended its decoder process (exit code %d)", code)
        if code in ENDED_BY_A_LIMIT:
            limit = f"opening the image takes more than {self.cpu_seconds:g} s"
            return ImageError(f"{limit}; make it smaller, or save it again in another format")
        return ImageError("the image could not be opened; save it again in another format")

    def _release(self, process: subprocess.Popen[bytes] | None, healthy: bool) -> None:
        if process is not None and (not healthy or self._closed):
            end_process(process)
            process = None
        if process is None and not self._closed:
            process = start_process()  # now, so that the next image need not wait for it
        self._idle.put(process)


@dataclass
class UnopenedImage(ImageOpener):
    """An image of a request, which is read and decoded by a pool when its turn comes."""

    read: Callable[[], bytes]
    """Gives the image file."""
    limits: ImageLimits = DEFAULT_LIMITS
    guard: Callable[[], AbstractContextManager[None]] = nullcontext
    """What surrounds the opening, to give errors their form."""
    decoders: DecoderPool | None = None
    """None for those of this process."""
    cancellation: Cancellation = field(default_factory=Cancellation)

    def __call__(self) -> Image.Image:
        """Opens the image.

        Raises:
            ImageError: it cannot be had, or is refused.
            RequestError: see `DecoderPool.decode`.
        """
        with self.guard():
            decoders = self.decoders or shared_decoders()
            return decoders.decode(self.read(), self.limits, self.cancellation, self.fit)

    def cancel(self) -> None:
        """Ends a call that another thread is in, and lets none begin."""
        self.cancellation.cancel()


class _Refused(Exception):
    """A decoder process is well and refuses an image."""


def exchange(
    process: subprocess.Popen[bytes], data: bytes, limits: ImageLimits, cpu_seconds: float, fit: Fit | None = None
) -> Image.Image:
    """Sends a file to a decoder process and reads its image, made smaller if `fit` says so.

    Raises:
        _Refused: with the reason.
        EOFError, OSError: the process has ended.
    """
    assert process.stdin is not None and process.stdout is not None
    request = {"bytes": len(data), "limits": asdict(limits), "cpu_seconds": cpu_seconds, "fits": fit is not None}
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.write(data)
    process.stdin.flush()
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    reply = json.loads(line)
    if "error" in reply:
        raise _Refused(reply["error"])
    width, height = reply["size"]
    if fit is not None:
        size = fit(width, height)
        smaller = size[0] * size[1] < width * height
        process.stdin.write(json.dumps(size if smaller else None).encode() + b"\n")
        process.stdin.flush()
        width, height = size if smaller else (width, height)
    image = Image.new("RGB", (width, height))
    rows = max(1, STRIP_BYTES // (3 * width))
    for top in range(0, height, rows):
        count = min(rows, height - top)
        strip = process.stdout.read(3 * width * count)
        if len(strip) < 3 * width * count:
            raise EOFError
        image.paste(Image.frombuffer("RGB", (width, count), strip, "raw", "RGB", 0, 1), (0, top))
    return image


def start_process() -> subprocess.Popen[bytes]:
    """Starts a decoder process; it ends by itself when this one does."""
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, _import_path())), "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "llava.serve.decoding.process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # Pillow's warnings
        env=environment,
    )
    for pipe in (process.stdin, process.stdout):
        widen_pipe(pipe)
    return process


def widen_pipe(pipe: IO[bytes] | None) -> None:
    """Lets a pipe hold more than its usual 64 KiB, where the system can: an image crosses it in fewer turns."""
    if pipe is not None and fcntl is not None and hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):  # beyond what this user may have
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _import_path() -> list[str | Path]:
    """Where this process found its packages, for a source tree that is not installed."""
    return [Path(__file__).parents[2], *filter(None, sys.path)]


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and waits for its end."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):  # it had not taken all that was written
                pipe.close()


@cache
def shared_decoders() -> DecoderPool:
    """The pool of this process, started with its first image and ended with the process."""
    pool = DecoderPool(PROCESSES)
    atexit.register(pool.close)
    return pool
