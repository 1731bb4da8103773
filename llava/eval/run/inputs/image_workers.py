"""Prepares images ahead of their reader: first in a thread, then in worker processes where these save time.

A worker imports torch before its first image, which takes seconds. The reader never waits for that import. It waits
for the thread or a worker only if one has begun the next image; otherwise it prepares the image itself.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from llava.serve.engine.errors import ran_out_of_memory

MIN_PREPARE_SECONDS = 10.0
"""Seconds of preparing in one thread, below which no worker starts: importing torch takes one about 3 s of a core."""

PER_WORKER = 5.0
"""Seconds of preparing for each worker that starts."""

PROBED = 2
"""Images that are prepared before anything else, to know what one takes; the first is slower than the others."""

IN_FLIGHT = 3
"""Images that a worker is sent before it has returned the first, so that it does not wait for this process."""

Prepare = Callable[[Any], Any]
"""Prepares an image. It and its results must travel between processes."""


@dataclass(frozen=True)
class Failed:
    """An image whose preparation raised."""

    error: Exception
    """Raised to the reader, in the image's place."""


class ImageQueue:
    """The images of a run in order: prepared, being prepared, or not taken yet."""

    def __init__(self, prepare: Prepare, sources: Sequence[Any], workers: int, ahead: int) -> None:
        """
        Args:
            prepare: prepares one image.
            sources: the images.
            workers: most processes.
            ahead: most images that are taken and not read yet, if above `PROBED`.
        """
        self.prepare, self.sources, self.workers, self.ahead = prepare, sources, workers, max(ahead, PROBED)
        self.read = 0
        """Number of images that were read."""
        self.started = 0
        """Number of worker processes that were started."""
        self._taken = 0
        self._ready: dict[int, Any] = {}
        self._changed = threading.Condition()
        self._fault: str | None = None
        self._closed = False
        self._up = False
        self._thread = threading.Thread(target=self._prepare_until_workers_are_up, daemon=True)
        self._processes: list[Any] = []
        self._threads_before: int | None = None

    def begin(self) -> None:
        """Prepares the first images, then starts as many workers as pay off, and a thread that helps until they are up.

        PyTorch and Pillow compute without Python's lock, so the thread prepares while the model answers.
        """
        fastest = math.inf
        while self._taken < PROBED and (index := self._take()) is not None:
            start = time.perf_counter()
            self._prepare_here(index)
            fastest = min(fastest, time.perf_counter() - start)
        if count := choose_count(fastest, len(self.sources) - self._taken, self.workers):
            self._start(count)
        self._thread.start()

    def next(self) -> Any:
        """Gets the next image; prepares images in this process until it is ready.

        Raises:
            StopIteration: there are no more images, or an earlier one failed.
            RuntimeError: a worker died, or its memory ran out.
            Others: what preparing this image raised, here or in a worker.
        """
        while True:
            with self._changed:
                if self._fault is not None:
                    raise RuntimeError(self._fault)
                if self._closed or self.read == len(self.sources):
                    raise StopIteration
                if self.read in self._ready:
                    ready = self._ready.pop(self.read)
                    self.read += 1
                    self._changed.notify_all()
                    if isinstance(ready, Failed):
                        raise ready.error
                    return ready
                index = self._take()
                if index is None:
                    self._changed.wait()
                    continue
            self._prepare_here(index)

    def close(self) -> None:
        """Ends the workers."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for process in self._processes:
            process.terminate()
            process.join()
        # At most one image's time: a thread that computes must not meet the interpreter's end. Another thread, in which
        # the last reference may end, must not wait for it: it may hold the lock that the thread needs to end.
        if self._thread.is_alive() and threading.current_thread() is threading.main_thread():
            self._thread.join()
        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)
            self._threads_before = None

    def _take(self, wait: bool = False) -> int | None:
        """Takes the next image that is not taken yet; None if there is none, or too many are waiting to be read."""
        with self._changed:
            while not self._closed and self._taken < len(self.sources):
                if self._taken < self.read + self.ahead:
                    self._taken += 1
                    return self._taken - 1
                if not wait:
                    break
                self._changed.wait()
            return None

    def _put(self, index: int, ready: Any) -> None:
        with self._changed:
            self._ready[index] = ready
            self._changed.notify_all()

    def _prepare_here(self, index: int) -> None:
        try:
            ready = self.prepare(self.sources[index])
        except Exception as error:  # the images before it are read first
            ready = Failed(error)
        self._put(index, ready)

    def _prepare_until_workers_are_up(self) -> None:
        try:
            while not self._up and (index := self._take(wait=True)) is not None:
                self._prepare_here(index)
        except BaseException as error:  # else the reader would wait for the image
            with self._changed:
                self._fault = f"the thread that prepares images ended: {type(error).__name__}: {error}"
                self._changed.notify_all()
            raise

    def _start(self, count: int) -> None:
        """Starts workers; PyTorch's threads in this process leave them their cores."""
        self.started = count
        context = multiprocessing.get_context("spawn")  # a fork would copy locks that this process's threads hold
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, self.prepare), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            threading.Thread(target=self._feed, args=(ours,), daemon=True).start()
        before = torch.get_num_threads()
        torch.set_num_threads(max(1, min(before, (os.cpu_count() or 1) - count)))
        self._threads_before = before

    def _feed(self, worker: Connection) -> None:
        """Gives one worker images to prepare, until none are left."""
        try:
            worker.recv()
            self._up = True
            sent: list[int] = []
            while True:
                while len(sent) < IN_FLIGHT and (index := self._take(wait=not sent)) is not None:
                    worker.send(self.sources[index])
                    sent.append(index)
                if not sent:
                    break
                self._put(sent.pop(0), worker.recv())
            worker.close()
        except (EOFError, OSError):
            with self._changed:
                if not self._closed:
                    self._fault = "a worker that prepares images died, perhaps for lack of memory; use fewer --workers"
                    self._changed.notify_all()
        except Exception as error:  # an image that cannot be sent or read back
            with self._changed:
                self._fault = f"a worker's image could not be exchanged: {error}"
                self._changed.notify_all()


def choose_count(seconds: float, left: int, workers: int) -> int:
    """Chooses how many workers to start; 0 where preparing the images here takes less than workers need to start.

    Args:
        seconds: that one image takes.
        left: number of images.
        workers: most processes.
    """
    total = seconds * left
    return 0 if total < MIN_PREPARE_SECONDS else min(workers, left, math.ceil(total / PER_WORKER))


def work(queue: Connection, prepare: Prepare) -> None:
    """Prepares images that come through a pipe until it is closed: what a worker process does."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("a worker has no parent process")

    def watch() -> None:
        parent.join()
        os._exit(1)  # even while it waits for a reader of its images

    threading.Thread(target=watch, daemon=True).start()
    torch.set_num_threads(1)
    with suppress(KeyboardInterrupt):
        prepare_all(queue, prepare)


def prepare_all(queue: Connection, prepare: Prepare) -> None:
    """Reports that this worker is up, then prepares images from a pipe until it is closed."""
    with suppress(EOFError, BrokenPipeError):
        queue.send(None)
        while True:
            queue.send_bytes(_prepare_one(prepare, queue.recv()))


def _prepare_one(prepare: Prepare, source: Any) -> Any:
    """Prepares an image; bytes of the result, or of `Failed`."""
    try:
        return ForkingPickler.dumps(prepare(source))
    except Exception as error:
        return ForkingPickler.dumps(Failed(make_portable(error)))


def make_portable(error: Exception) -> Exception:
    """Makes an error that can be sent to another process: itself, or one with its type's name and its message."""
    if ran_out_of_memory(error):
        return RuntimeError("a worker that prepares images ran out of memory; use fewer --workers")
    with suppress(Exception):  # unpickling may raise anything
        if str(pickle.loads(pickle.dumps(error))) == str(error):
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")


class Ahead(Iterator[Any]):
    """Reads an `ImageQueue`; its workers end with the last image, or when this iterator is no longer referenced."""

    def __init__(self, queue: ImageQueue) -> None:
        self.queue = queue
        self._end = weakref.finalize(self, queue.close)

    def __next__(self) -> Any:
        try:
            return self.queue.next()
        except Exception:
            self._end()
            raise
