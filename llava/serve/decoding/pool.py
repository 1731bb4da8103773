"""A pool of processes that decode untrusted images, with limits on their time and memory."""

from __future__ import annotations

import atexit
import logging
import queue
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache

from PIL import Image

from llava.images import DEFAULT_LIMITS, Fit, ImageError, ImageLimits, ImageOpener
from llava.serve.decoding.client import DecoderFailedError, ImageRefusedError, end_process, exchange, start_process
from llava.serve.decoding.watchdog import ended_if_it_hangs
from llava.serve.http.failures import RequestError

logger = logging.getLogger(__name__)

PROCESSES = 8  # more than cores, so that a few slow images do not block the others; started on demand
CPU_SECONDS = 5.0
IDLE_SECONDS = 8.0
WALL_SECONDS = 120.0  # a busy machine may give a process of low priority a twentieth of a core
WAIT_SECONDS = 30.0
UNOPENED = "the image could not be opened; save it again in another format"
ENDED_BY_A_LIMIT = {-getattr(signal, name) for name in ("SIGXCPU", "SIGKILL") if hasattr(signal, name)}


def client_gone() -> RequestError:
    """Makes the error of an image whose client has disconnected."""
    return RequestError(499, "client_gone", "the client has gone")


class Cancellation:
    """Stops the decoding of one request's images, from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """Kills the process that is decoding now; later images are not started."""
        with self._lock:
            self.cancelled = True
            if self._process is not None:
                self._process.kill()

    def watch(self, process: subprocess.Popen[bytes] | None) -> None:
        """Records which process is decoding now; None when it has finished.

        Raises:
            RequestError: `cancel` was called.
        """
        with self._lock:
            self._process = process
            if self.cancelled and process is not None:
                self._process = None
                raise client_gone()


class DecoderPool:
    """Processes that decode images; one that exceeds a limit is killed and replaced."""

    def __init__(
        self,
        size: int,
        cpu_seconds: float = CPU_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
        wall_seconds: float = WALL_SECONDS,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        """
        Args:
            size: Number of processes, hence of images decoded at a time.
            cpu_seconds: Limit on the processor time for an image.
            idle_seconds: Limit on the elapsed time in which its process takes no processor time.
            wall_seconds: Limit on the elapsed time for an image, however busy the machine is.
            wait_seconds: Limit on an image's wait for a free process.
        """
        self.cpu_seconds, self.idle_seconds, self.wall_seconds = cpu_seconds, idle_seconds, wall_seconds
        self.wait_seconds = wait_seconds
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
        """Decodes an image file like `llava.images.decode_image`; blocks the calling thread.

        Args:
            data: The file's content.
            limits: Limits on the file and its pixels.
            cancellation: Stops the decoding.
            fit: Chooses the size to resize to, from the image's size; a smaller image is resized in the process, so
                that less is transferred.

        Raises:
            ImageError: the file is not an image, is broken, or is above a limit, including those on time and memory.
            RequestError: all processes were busy for too long, none can be started, or the decoding was cancelled.
        """
        limits.check_bytes(len(data))
        cancellation = cancellation or Cancellation()
        try:
            process = self._idle.get(timeout=self.wait_seconds)
        except queue.Empty:
            raise RequestError(503, "busy", "too many images are being opened; try again in some seconds", 5) from None
        healthy = True
        try:
            if process is None or process.poll() is not None:
                process = None  # one that has ended is not released again
                process = self._start()
            cancellation.watch(process)
            healthy = False  # until the exchange is complete
            image = self._exchange(process, data, limits, cancellation, fit)
            healthy = True
            return image
        except ImageRefusedError as error:
            healthy = True
            raise ImageError(str(error)) from None
        finally:
            cancellation.watch(None)
            self._release(process, healthy and not cancellation.cancelled)  # `cancel` may have killed it at the end

    def close(self) -> None:
        """Ends the idle processes now, and the others once they are idle."""
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
        try:
            with ended_if_it_hangs(process, self.idle_seconds, self.wall_seconds):
                return exchange(process, data, limits, self.cpu_seconds, fit)
        except DecoderFailedError as error:
            logger.warning("an image made its decoder process fail: %r", str(error))
            raise ImageError(UNOPENED) from None
        except (EOFError, OSError):  # the process was killed
            if cancellation.cancelled:
                raise client_gone() from None
            raise self._explain_end(process) from None

    def _explain_end(self, process: subprocess.Popen[bytes]) -> ImageError:
        code = process.wait()
        logger.warning("an image ended its decoder process (exit code %d)", code)
        if code in ENDED_BY_A_LIMIT:
            limit = f"opening the image takes more than {self.cpu_seconds:g} s"
            return ImageError(f"{limit}; make it smaller, or save it again in another format")
        return ImageError(UNOPENED)

    def _release(self, process: subprocess.Popen[bytes] | None, healthy: bool) -> None:
        if process is not None and (not healthy or self._closed):
            end_process(process)
            process = None
        if process is None and not self._closed:
            with suppress(RequestError):  # else with the next image
                process = self._start()  # now, so that the next image does not wait for it
        self._idle.put(process)

    def _start(self) -> subprocess.Popen[bytes]:
        """Starts a process.

        Raises:
            RequestError: the system has no files, processes or memory left for one.
        """
        try:
            return start_process()
        except OSError as error:
            logger.error("cannot start an image decoder process: %s", error)
            raise RequestError(503, "busy", "the server cannot open images now; try again in some seconds", 5) from None


@dataclass
class UnopenedImage(ImageOpener):
    """An image of a request, read and decoded by a pool when it is called."""

    read: Callable[[], bytes]
    """Reads the image file."""
    limits: ImageLimits = DEFAULT_LIMITS
    guard: Callable[[], AbstractContextManager[None]] = nullcontext
    """Context of the opening, which converts its errors."""
    decoders: DecoderPool | None = None
    """None uses the pool shared by this process."""
    cancellation: Cancellation = field(default_factory=Cancellation)

    def __call__(self) -> Image.Image:
        """Opens the image.

        Raises:
            ImageError: it cannot be read, or is refused.
            RequestError: see `DecoderPool.decode`.
        """
        with self.guard():
            decoders = self.decoders or shared_decoders()
            return decoders.decode(self.read(), self.limits, self.cancellation, self.fit)

    def cancel(self) -> None:
        """Stops a call in another thread, and refuses later ones."""
        self.cancellation.cancel()


@cache
def shared_decoders() -> DecoderPool:
    """Creates this process's pool, once; its processes start on demand and end with this one."""
    pool = DecoderPool(PROCESSES)
    atexit.register(pool.close)
    return pool
