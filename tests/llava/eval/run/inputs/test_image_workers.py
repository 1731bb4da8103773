"""Images come in order, whichever process prepared them; workers start only where they pay, and the run goes ahead."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.eval.run.inputs import image_workers
from llava.eval.run.inputs.image_workers import PROBED, Ahead, ImageQueue, choose_count, prepare_all

DEADLINE = 300


@pytest.mark.parametrize(
    ("seconds", "left", "workers", "count"),
    [
        (0.003, 240, 2, 0),  # 0.7 s
        (0.05, 199, 2, 0),  # just below 10 s
        (0.05, 200, 8, 2),  # 10 s, for 5 s each
        (0.01, 100_000, 8, 8),
        (30.0, 1, 8, 1),  # no more than images
        (30.0, 0, 8, 0),
    ],
)
def test_workers_start_where_what_is_left_is_worth_it(seconds: float, left: int, workers: int, count: int) -> None:
    assert choose_count(seconds, left, workers) == count


@pytest.mark.parametrize("ahead", [1, 3, 100])
def test_a_little_work_is_done_here_ahead_of_the_reader(ahead: int) -> None:
    seen: list[int] = []
    waiting: list[int] = []

    def double(source: int) -> int:
        seen.append(source)
        waiting.append(source + 1 - queue.read)
        return 2 * source

    queue = ImageQueue(double, range(9), 4, ahead)
    queue.begin()
    reader = Ahead(queue)
    assert next(reader) == 0
    assert list(reader) == [2 * number for number in range(1, 9)]
    assert sorted(seen) == list(range(9)) and queue.started == 0
    assert max(waiting) <= max(ahead, PROBED)
    assert not queue._thread.is_alive()


def test_a_thread_prepares_while_the_reader_does_something_else() -> None:
    prepared, done = [], threading.Event()

    def prepare(source: int) -> int:
        prepared.append(threading.current_thread())
        if len(prepared) == PROBED + 3:
            done.set()
        return source

    queue = ImageQueue(prepare, range(9), 4, PROBED + 3)
    queue.begin()
    assert done.wait(DEADLINE)
    here = threading.current_thread()
    assert [thread is here for thread in prepared] == [True] * PROBED + [False] * 3
    assert list(Ahead(queue)) == list(range(9))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_amid_an_image_is_an_error_of_the_reader() -> None:
    def prepare(source: int) -> int:
        if source >= PROBED:
            raise SystemExit("the process is to end")
        return source

    queue = ImageQueue(prepare, range(9), 4, PROBED + 1)
    queue.begin()
    queue._thread.join(DEADLINE)
    with pytest.raises(RuntimeError, match="the thread that prepares images ended: SystemExit: the process is to end"):
        list(Ahead(queue))


@dataclass(frozen=True)
class Meeting:
    """Prepares images as (image, process); after two, the starting process waits until a worker has one."""

    folder: Path
    home: int

    def __call__(self, source: int) -> tuple[int, int]:
        if os.getpid() != self.home:
            (self.folder / "up").touch()
        elif source >= PROBED:
            end = time.monotonic() + DEADLINE
            while not (self.folder / "up").exists():
                assert time.monotonic() < end, "no worker came"
                time.sleep(0.01)
        return source, os.getpid()


def test_workers_take_over_once_they_are_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_workers, "MIN_PREPARE_SECONDS", 0.0)
    threads = torch.get_num_threads()
    queue = ImageQueue(Meeting(tmp_path, os.getpid()), range(40), 1, 10)
    reader = Ahead(queue)
    queue.begin()
    found = list(reader)
    assert [source for source, _ in found] == list(range(40))
    here = [process == os.getpid() for _, process in found]
    assert all(here[:PROBED]) and not all(here)
    assert queue.started == 1 and not any(process.is_alive() for process in queue._processes)
    assert torch.get_num_threads() == threads


def feed(queue: ImageQueue, act: Callable[..., None]) -> None:
    """Plays a worker: `act` gets its end of the pipe, in another thread."""
    ours, theirs = Pipe()
    threading.Thread(target=act, args=(theirs,), daemon=True).start()
    queue._feed(ours)


def test_a_worker_gets_no_more_images_than_may_wait_and_none_twice() -> None:
    ahead, waiting, asked, here = 5, [], [], []

    def prepare(source: str) -> str:
        here.append(source)
        return source.upper()

    queue = ImageQueue(prepare, "abcdefgh", 1, ahead)

    def act(end: Connection) -> None:
        end.send(None)
        with suppress(EOFError):
            while True:
                asked.append(end.recv())
                end.send(asked[-1].upper())
                waiting.append(queue._taken - queue.read)

    threading.Thread(target=feed, args=(queue, act), daemon=True).start()
    while len(asked) < ahead:  # then it has to wait for the reader
        time.sleep(0.005)
    assert "".join(Ahead(queue)) == "ABCDEFGH"
    assert "".join(sorted(asked + here)) == "abcdefgh" and asked[:ahead] == list("abcde")
    assert max(waiting) <= ahead


@pytest.mark.parametrize("words", ["died", "exchanged"])
def test_a_worker_that_fails_is_an_error_of_the_reader(words: str) -> None:
    queue = ImageQueue(str, range(9), 1, 9)

    def act(end: Connection) -> None:
        end.send(None)
        if words == "died":
            end.close()
        else:
            end.send_bytes(b"not a pickle")

    feed(queue, act)
    with pytest.raises(RuntimeError, match=words):
        list(Ahead(queue))


class Odd(Exception):
    """Cannot be built again from its message, which is what pickle tries."""

    def __init__(self, size: int, most: int) -> None:
        super().__init__(f"{size} is above {most}")


def prepare_or_raise(error: Exception | None) -> Callable[[int], Any]:
    """Prepares images as 10, 11, ... but the third; no error makes that one's result impossible to send."""

    def prepare(source: int) -> Any:
        if source != 2:
            return source + 10
        if error is None:
            return threading.Lock()
        raise error

    return prepare


@pytest.mark.parametrize("in_worker", [False, True])
@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (ValueError("alpha is odd"), (ValueError, ValueError), "^alpha is odd$"),
        (Odd(5, 3), (Odd, RuntimeError), "5 is above 3$"),
        (MemoryError(), (MemoryError, RuntimeError), "^$|ran out of memory; use fewer --workers"),
    ],
)
def test_an_error_of_one_image_is_raised_in_its_place(
    error: Exception, raised: tuple[type, type], words: str, in_worker: bool
) -> None:
    prepare = prepare_or_raise(error)
    queue = ImageQueue(prepare, range(4), 1, 9)
    if in_worker:
        feed(queue, lambda end: prepare_all(end, prepare))
    reader = Ahead(queue)
    assert [next(reader), next(reader)] == [10, 11]
    with pytest.raises(Exception, match=words) as caught:
        next(reader)
    assert type(caught.value) is raised[in_worker]
    assert queue._closed
    assert next(reader, "no more") == "no more"


def test_a_result_that_cannot_be_sent_is_an_error_with_its_reason() -> None:
    queue = ImageQueue(str, range(4), 1, 9)
    feed(queue, lambda end: prepare_all(end, prepare_or_raise(None)))
    with pytest.raises(TypeError, match="cannot pickle"):
        list(Ahead(queue))


def test_workers_end_when_nobody_reads_on() -> None:
    queue = ImageQueue(str, range(9), 1, 9)
    reader = Ahead(queue)
    assert next(reader) == "0"
    del reader
    assert queue._closed
