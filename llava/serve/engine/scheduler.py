"""Queues requests and hands them to the model's one thread, within the bounds on the queue and on batches.

What running a batch means is a function given by the engine. Requests may join a batch that runs (`take`); where the
model cannot do that, batches run to their end one after the other, and one that fails is retried in smaller ones.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from llava.serve.engine.answer_stream import AnswerStream
from llava.serve.engine.errors import EngineClosedError, OverloadedError, ran_out_of_memory
from llava.serve.engine.halving import release_tensors, split_after_failure
from llava.serve.engine.params import GROWTH, EngineLimits

T = TypeVar("T")

logger = logging.getLogger(__name__)

MAX_RETRY_AFTER = 60  # seconds
JOIN_WAIT = 0.25  # how long a batch waits for requests that are being prepared, as a share of the last batch's time
MAX_JOIN_WAIT = 0.5  # seconds


class Scheduler:
    """First in, first out queue of requests, run in batches."""

    def __init__(
        self,
        generate: Callable[[Sequence[AnswerStream]], None],
        limits: EngineLimits,
        joins: bool = False,
        free: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Args:
            generate: Answers a batch; called in the model thread, one batch at a time.
            limits: Bounds on the batches and the queue.
            joins: Whether `generate` takes further requests (`take`) while it runs.
            free: Frees memory that no running answer needs, where it has run out; false if there is none.
        """
        self.generate, self.limits, self.joins, self.free = generate, limits, joins, free
        self.admitted = 0
        """Number of requests that wait or are being prepared."""
        self.closed = False
        """Whether new requests are refused."""
        self._lock = threading.Condition()
        self._waiting: deque[AnswerStream] = deque()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()  # other work for the model thread
        self._started: dict[AnswerStream, float] = {}  # requests that are being answered, and since when
        self._draining = False
        self._batch_seconds = 0.0  # of the last batch, or answer
        # Its thread sleeps while the queue is empty, and ends with the scheduler.
        self._model_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    @property
    def running(self) -> int:
        """Number of requests that are being answered."""
        return len(self._started)

    def reserve(self) -> None:
        """Reserves a place in the queue for a request; `enqueue` uses it, or `release` gives it back.

        Raises:
            OverloadedError: the queue is full.
            EngineClosedError: the scheduler is closed.
        """
        with self._lock:
            if self.closed:
                raise EngineClosedError
            if self.admitted >= self.limits.max_waiting:
                batches = math.ceil(self.admitted / self.limits.max_batch)
                seconds = math.ceil(batches * self._batch_seconds)
                raise OverloadedError(self.admitted, min(MAX_RETRY_AFTER, max(1, seconds)))
            self.admitted += 1

    def enqueue(self, answer: AnswerStream) -> None:
        """Appends a request that has a reserved place."""
        with self._lock:
            self._waiting.append(answer)
            self._wake()

    def call(self, work: Callable[[], T]) -> T:
        """Runs work in the model thread, between batches or the tokens of a batch that others join.

        It takes a place in the queue, but no turn: requests that wait do not delay it.

        Raises:
            OverloadedError, EngineClosedError: see `reserve`.
            Others: what the work raises.
        """
        self.reserve()
        future: Future[T] = Future()
        with self._lock:
            self._calls.append((future, work))
            self._wake()
        return future.result()

    def _wake(self) -> None:
        """Starts the model thread's work, unless it is at work; the lock is held."""
        self._lock.notify_all()
        if not self._draining:
            self._draining = True
            self._model_thread.submit(self._drain)

    def release(self, count: int = 1) -> None:
        """Frees places in the queue."""
        with self._lock:
            self.admitted -= count
            self._lock.notify_all()

    def remove(self, answer: AnswerStream) -> None:
        """Removes a cancelled request from the queue, if it still waits there."""
        with self._lock:
            if answer not in self._waiting:
                return
            self._waiting.remove(answer)
            self.release()
        answer.row.finished()

    def close(self) -> None:
        """Refuses new requests and waits until the others are answered."""
        with self._lock:
            self.closed = True
            self._lock.wait_for(lambda: not self.admitted)
        self._model_thread.shutdown(wait=True)

    def take(self, active: Sequence[AnswerStream], most_rows: int) -> list[AnswerStream]:
        """Takes requests off the queue, in order, that may join those being answered. Called in the model thread.

        Args:
            active: The requests that are being answered; the others have ended.
            most_rows: Largest number of all.
        """
        self._run_calls()
        with self._lock:
            self._note_ended(active)
            if self._waiting and self._waiting[0].row.sampling.num_beams > 1:
                return []  # it runs alone, as a batch of its own, once the others have ended
            return self._pop_batch(active, most_rows)

    def _drain(self) -> None:
        """Answers batches until the queue is empty. Runs in the model thread."""
        while True:
            self._run_calls()
            if batch := self._next_batch():
                try:
                    self._run(batch)
                except BaseException as error:  # the thread must live on for the requests that come
                    logger.exception("requests that were being answered failed")
                    self._fail_started(error)
                with self._lock:
                    self._note_ended(())
            elif not self._draining:
                return

    def _fail_started(self, error: BaseException) -> None:
        """Ends all requests that are being answered with an error."""
        failure = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
        for answer in [each for each in self._started if not each.row.ended]:
            answer.fail(failure)

    def _run_calls(self) -> None:
        """Does the other work that waits. Runs in the model thread."""
        while True:
            with self._lock:
                if not self._calls:
                    return
                future, work = self._calls.popleft()
                self.release()
            try:
                result = self._call(work)
            except BaseException as error:  # its caller's
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, work  # with their tensors

    def _call(self, work: Callable[[], T]) -> T:
        """Does other work; out of memory, once more if some could be freed."""
        try:
            return work()
        except Exception as error:
            failure = error
        failure = release_tensors(failure)
        if ran_out_of_memory(failure) and self.free():
            return work()
        raise failure

    def _note_ended(self, active: Sequence[AnswerStream]) -> None:
        """Counts the requests that are being answered, and keeps the time that the last one took."""
        now = time.perf_counter()
        for answer in [each for each in self._started if each not in active]:
            self._batch_seconds = now - self._started.pop(answer)
            self._lock.notify_all()

    def _next_batch(self) -> list[AnswerStream]:
        """Takes the next batch off the queue, in order: as many requests as may run together.

        Where requests cannot join later, it waits a little for those that are still being prepared. Clients that were
        answered together send their next requests together; if the first one ready ran alone, the others would wait for
        its whole answer.
        """
        with self._lock:
            if not self.joins:
                patience = min(JOIN_WAIT * self._batch_seconds, MAX_JOIN_WAIT)
                self._lock.wait_for(self._batch_is_complete, patience)
            batch = self._pop_batch((), self.limits.max_batch)
            self._draining = bool(batch or self._calls)
            return batch

    def _pop_batch(self, active: Sequence[AnswerStream], most_rows: int) -> list[AnswerStream]:
        batch: list[AnswerStream] = []
        growth, joining = GROWTH if self.joins else 0, 0
        while self._waiting and len(active) + len(batch) < most_rows:
            first = self._waiting[0]
            joining += first.usage.prompt_tokens
            others = [*active, *batch]
            if others and not (
                self.limits.hold([answer.length for answer in (*others, first)], growth)
                and first.row.sampling.num_beams == others[0].row.sampling.num_beams == 1
            ):
                break
            if self.joins and batch and joining > self.limits.max_join_tokens:
                break
            batch.append(self._waiting.popleft())
        self.release(len(batch))
        self._started.update(dict.fromkeys(batch, time.perf_counter()))
        return batch

    def _batch_is_complete(self) -> bool:
        """Whether no request that is being prepared could join the next batch."""
        waiting = len(self._waiting)
        return waiting in (0, self.admitted) or waiting >= self.limits.max_batch

    def _run(self, batch: Sequence[AnswerStream]) -> None:
        """Answers a batch; one that fails before any of its answers has begun is retried in parts.

        Out of memory, it is tried again if some could be freed, and else its halves are; after another error each
        request is tried alone, so that only those at fault fail.
        """
        try:
            self.generate(batch)
            return
        except Exception as error:  # any error ends these answers only, not the model thread
            failure = error
        failure = release_tensors(failure)
        for part in self._parts_to_retry(batch, failure):
            if left := [answer for answer in part if not answer.row.ended]:
                self._run(left)

    def _parts_to_retry(self, batch: Sequence[AnswerStream], failure: Exception) -> list[Sequence[AnswerStream]]:
        begun = [answer for answer in batch if answer.row.generated and not answer.row.ended]
        if not begun and ran_out_of_memory(failure) and self.free():
            return [batch]
        if begun or len(batch) == 1:
            for answer in begun or batch:
                answer.fail(failure)
            return [[answer for answer in batch if not answer.row.generated]] if begun else []
        return split_after_failure(batch, failure, "together")
