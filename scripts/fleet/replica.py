"""One replica of the simulation: threads that prepare images, and a model that starts and continues answers.

With continuous batches it works as the engine does (`llava/serve/engine/continuous.py`): what has come joins as one
group, in pieces of bounded size, first its images and then its prompts, with one token for all that run between two
pieces; what comes in the meantime is in the next group. It leaves out that answers which outgrow the batch are
suspended, and that a prompt may begin as an earlier one did.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, islice
from typing import Literal

from llava.serve.engine.params import GROWTH, EngineLimits
from scripts.fleet.stages import Request, StageTimes

Batching = Literal["continuous", "static"]


class Clock:
    """Simulated time, and what will happen when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()  # events of the same time happen in the order in which they were planned

    def at(self, time: float, act: Callable[[], None]) -> None:
        """Plans an event."""
        heapq.heappush(self._events, (time, next(self._numbers), act))

    def run(self) -> None:
        """Lets everything happen that is planned, and what that plans."""
        while self._events:
            self.now, _, act = heapq.heappop(self._events)
            act()


@dataclass(frozen=True)
class Limits:
    """What one replica takes on."""

    slots: int = 16
    """Most answers that are generated together: the engine's `max_batch`."""
    preparers: int = 8
    """Threads that prepare images: the engine's `max_preparing`, or the cores of a replica if these are fewer."""
    waiting: int = 64
    """Most requests that wait, images being prepared included; more are refused."""
    batching: Batching = "continuous"
    """Whether answers join and leave at every token, or a batch runs until its last answer ends."""
    join_tokens: int = EngineLimits.max_join_tokens
    """Most tokens of images or prompts that are run between two steps, and of a group that joins ("continuous")."""
    batch_tokens: int = EngineLimits.max_batch_tokens
    """Most answers times tokens of the longest, as answers join ("continuous")."""


@dataclass
class Job:
    """One request on its way through a replica; times in seconds."""

    request: Request
    preparing_at: float = 0.0
    prepared_at: float = 0.0
    started_at: float = 0.0
    """When the model began with it."""
    first_at: float = 0.0
    """Its first token."""
    done_at: float = 0.0
    left: int = 0
    """Tokens that its answer lacks."""

    @property
    def length(self) -> int:
        """Tokens of its prompt and its answer so far."""
        return self.request.prompt + self.request.answer - self.left


class Replica:
    """Preparing threads and a model thread, each with a queue, first in, first out."""

    def __init__(self, clock: Clock, times: StageTimes, limits: Limits) -> None:
        self.clock, self.times, self.limits = clock, times, limits
        self.unprepared: deque[Job] = deque()
        self.prepared: deque[Job] = deque()
        self.running: list[Job] = []
        self.done: list[Job] = []
        self.refused = 0
        self.preparing = 0
        """Threads that prepare an image now."""
        self.preparing_seconds = self.model_seconds = 0.0
        self._busy = False
        self._rows = 0  # of a static batch, ended answers included
        self._joining: list[Job] = []
        self._pieces: deque[float] = deque()  # seconds of the work that those need which join
        self._stepped = True  # whether running answers had their turn since the last piece

    @property
    def waiting(self) -> int:
        """Requests that the model has not begun with."""
        return len(self.unprepared) + self.preparing + len(self.prepared)

    @property
    def ongoing(self) -> int:
        """Requests that have come and are not done, as a router counts them."""
        return self.waiting + len(self._joining) + len(self.running)

    def receive(self, request: Request) -> None:
        """Takes a request, or refuses it."""
        if self.waiting >= self.limits.waiting:
            self.refused += 1
            return
        self.unprepared.append(Job(request, left=request.answer))
        self._prepare()

    def _prepare(self) -> None:
        while self.unprepared and self.preparing < self.limits.preparers:
            job = self.unprepared.popleft()
            self.preparing += 1
            job.preparing_at = self.clock.now
            seconds = self.times.preparing(job.request)
            self.preparing_seconds += seconds
            self.clock.at(self.clock.now + seconds, lambda job=job: self._finish_preparing(job))

    def _finish_preparing(self, job: Job) -> None:
        self.preparing -= 1
        job.prepared_at = self.clock.now
        self.prepared.append(job)
        self._prepare()
        if not self._busy:
            self._work()

    def _work(self) -> None:
        """Lets the model do the next thing; it is idle if there is none."""
        self._busy = True
        if self.limits.batching == "static":
            self._work_on_batch()
            return
        if not self._joining:
            self._let_join()
        if self._pieces and (self._stepped or not self.running):
            self._stepped = False
            seconds, joined = self._pieces.popleft(), []
            if not self._pieces:  # its first tokens come with the last piece
                joined, self._joining = self._joining, []
            self.running += joined
            self._spend(seconds, joined)
        elif self.running:
            self._stepped = True
            self._spend(self.times.stepping(len(self.running), self._count_context()), self.running)
        else:
            self._busy = False

    def _work_on_batch(self) -> None:
        """Starts a batch, or continues the one that runs."""
        if self.running:
            self._spend(self.times.stepping(self._rows, self._count_context()), self.running)
        elif self.prepared:
            self.running = self._take(min(self.limits.slots, len(self.prepared)))
            self._rows = len(self.running)
            self._spend(self.times.starting([job.request for job in self.running]), self.running)
        else:
            self._busy = False

    def _let_join(self) -> None:
        """Takes the group that joins next and plans its pieces."""
        bounds = EngineLimits(max_batch_tokens=self.limits.batch_tokens)
        lengths, joining, taken = [job.length for job in self.running], 0, 0
        for job in islice(self.prepared, max(0, self.limits.slots - len(self.running))):
            lengths.append(job.request.prompt)
            joining += job.request.prompt
            if not bounds.hold(lengths, GROWTH) or (taken and joining > self.limits.join_tokens):
                break
            taken += 1
        self._joining = self._take(taken)
        if taken:
            self._pieces.extend(self.times.pieces([job.request for job in self._joining], self.limits.join_tokens))

    def _take(self, number: int) -> list[Job]:
        jobs = [self.prepared.popleft() for _ in range(number)]
        for job in jobs:
            job.started_at = self.clock.now
        return jobs

    def _count_context(self) -> int:
        return sum(job.length for job in self.running)

    def _spend(self, seconds: float, jobs: list[Job]) -> None:
        """Gives each of the jobs a token after these seconds of the model."""
        self.model_seconds += seconds
        jobs = list(jobs)
        self.clock.at(self.clock.now + seconds, lambda: self._give_tokens(jobs))

    def _give_tokens(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.first_at = job.first_at or self.clock.now
            job.left -= 1
            if job.left == 0:
                job.done_at = self.clock.now
                self.done.append(job)
        self.running = [job for job in self.running if job.left]
        self._work()
