"""The queue before the model: requests wait in it, batches leave it, one thread runs them.

Knows what a request weighs and how to end it, but no model: what a batch comes to is for the engine to say.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from llava.serve.engine.answer_stream import Answer
from llava.serve.engine.errors import EngineClosed, Overloaded, ran_out_of_memory
from llava.serve.engine.halving import halve
from llava.serve.engine.params import EngineLimits

logger = logging.getLogger(__name__)

LONGEST_RETRY = 60  # seconds that a refused client is asked to wait at most
PATIENCE = 0.25  # of the last batch's time: how long a batch waits for requests that are being prepared
MOST_PATIENCE = 0.5  # seconds that it waits at most


class BatchQueue:
    """Requests on their way to the model, in the order in which they came."""

    def __init__(self, generate: Callable[[Sequence[Answer]], None], limits: EngineLimits) -> None:
        """
        Args:
            generate: Answers a batch; called in the model thread, one batch at a time.
            limits: Bounds on batches and on what waits.
        """
        self.generate, self.limits = generate, limits
        self.admitted = 0
        """Requests that wait or are being prepared."""
        self.running = 0
        """Requests that are being answered."""
        self.closed = False
        """Whether no more requests are taken."""
        self._lock = threading.Condition()
        self._waiting: deque[Answer] = deque()
        self._draining = False
        self._batch_seconds = 0.0
        # Its thread sleeps while nobody waits, and ends with the queue.
        self._model_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    def admit(self) -> None:
        """Takes a place for a request, to be prepared and then `put` in, or else given back by `dismiss`.

        Raises:
            Overloaded: too many requests wait.
            EngineClosed: no more are taken.
        """
        with self._lock:
            if self.closed:
                raise EngineClosed
            if self.admitted >= self.limits.max_waiting:
                batches = math.ceil(self.admitted / self.limits.max_batch)
                seconds = math.ceil(batches * self._batch_seconds)
                raise Overloaded(self.admitted, min(LONGEST_RETRY, max(1, seconds)))
            self.admitted += 1

    def put(self, answer: Answer) -> None:
        """Lets an admitted request wait for the model."""
        with self._lock:
            self._waiting.append(answer)
            self._lock.notify_all()
            if not self._draining:
                self._draining = True
                self._model_thread.submit(self._drain)

    def dismiss(self, count: int = 1) -> None:
        """Gives places back: their requests wait no more."""
        with self._lock:
            self.admitted -= count
            self._lock.notify_all()

    def forget(self, answer: Answer) -> None:
        """Takes a cancelled request out, if it still waits."""
        with self._lock:
            if answer not in self._waiting:
                return
            self._waiting.remove(answer)
            self.dismiss()
        answer.row.finished()

    def close(self) -> None:
        """Takes no more requests, and waits until those taken are answered."""
        with self._lock:
            self.closed = True
            self._lock.wait_for(lambda: not self.admitted)
        self._model_thread.shutdown(wait=True)

    def _drain(self) -> None:
        """Answers until nobody waits. Runs in the model thread."""
        while batch := self._next_batch():
            start = time.perf_counter()
            self._run(batch)
            self._batch_seconds = time.perf_counter() - start
            self.running = 0

    def _next_batch(self) -> list[Answer]:
        """The requests that have waited longest and may go together; nobody overtakes.

        Clients that were answered together ask again together: were the first to be ready to go alone, the others would
        wait for its whole answer.
        """
        with self._lock:
            self._lock.wait_for(self._complete, min(PATIENCE * self._batch_seconds, MOST_PATIENCE))
            batch: list[Answer] = []
            visual = 0
            while self._waiting and len(batch) < self.limits.max_batch:
                first = self._waiting[0]
                visual += first.usage.visual_tokens
                if batch and not (
                    visual <= self.limits.max_batch_tokens
                    and first.row.sampling.num_beams == batch[0].row.sampling.num_beams == 1
                ):
                    break
                batch.append(self._waiting.popleft())
            self.dismiss(len(batch))
            self.running = len(batch)
            self._draining = bool(batch)
            return batch

    def _complete(self) -> bool:
        """Whether no request would join the next batch soon."""
        waiting = len(self._waiting)
        return waiting in (0, self.admitted) or waiting >= self.limits.max_batch

    def _run(self, batch: Sequence[Answer]) -> None:
        """Answers a batch. Where it fails before an answer has begun, smaller ones may do.

        Its halves, if memory does not suffice for it; else each request alone, so that only those fail that are to
        blame.
        """
        try:
            self.generate(batch)
            return
        except Exception as error:  # whatever it is, it ends these answers and not the thread
            failure = error
        if any(answer.row.generated for answer in batch) or len(batch) == 1:
            for answer in batch:
                answer.fail(failure)
            return
        if ran_out_of_memory(failure):
            del failure  # its traceback holds the tensors that did not fit
            logger.warning("out of memory with %d requests together; trying half as many", len(batch))
            parts = list(halve(batch))
        else:
            logger.warning("a batch of %d requests failed; trying each alone", len(batch), exc_info=failure)
            del failure
            parts = [[answer] for answer in batch]
        for part in parts:
            if left := [answer for answer in part if not answer.row.ended]:
                self._run(left)
