"""The registered workers of a controller, and the choice of the one that gets the next request."""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from llava.constants import CONTROLLER_HEART_BEAT_EXPIRATION
from llava.serve.workers.protocol import MAX_ITEMS, MAX_NUMBER, WorkerStatus

logger = logging.getLogger(__name__)

Dispatch = Literal["lottery", "shortest_queue"]


@dataclass
class Worker:
    """A registered worker."""

    status: WorkerStatus
    """Status as last reported; the queue also counts the requests sent to the worker since then."""
    check_heart_beat: bool
    """Whether it is dropped when its heartbeats stop."""
    last_seen: float
    """Time of its last sign of life, by the registry's clock."""
    turn: int = 0
    """Higher, the later it was chosen."""

    @property
    def wait(self) -> float:
        """Queue length divided by speed; comparable between workers only."""
        return self.status.queue_length / self.status.speed


class Registry:
    """The workers by address; one whose heartbeats have stopped is dropped."""

    def __init__(
        self,
        dispatch: Dispatch = "shortest_queue",
        expiration: float = CONTROLLER_HEART_BEAT_EXPIRATION,
        clock: Callable[[], float] = time.monotonic,
        seed: int | None = None,
    ) -> None:
        """
        Args:
            dispatch: "lottery" draws a worker, a fast one more often; "shortest_queue" takes the one that should be
                free first.
            expiration: Seconds without a heartbeat after which a worker is dropped.
            clock: Gives the time, in seconds.
            seed: Makes the lottery repeatable.
        """
        self.dispatch, self.expiration, self.clock = dispatch, expiration, clock
        self._random = random.Random(seed)
        self._turns = itertools.count(1)
        self._workers: dict[str, Worker] = {}

    def register(self, name: str, status: WorkerStatus, check_heart_beat: bool) -> None:
        """Adds a worker, or replaces its status."""
        known = self._workers.get(name)
        if known is None or known.status.model_names != status.model_names:
            logger.info("registered %s with %s", name, ", ".join(status.model_names) or "no model")
        self._workers[name] = Worker(status.model_copy(), check_heart_beat, self.clock())

    def serves_others(self, name: str, models: Collection[str]) -> bool:
        """Whether a registered worker has reported other models than these."""
        worker = self.workers().get(name)
        return worker is not None and set(worker.status.model_names) != set(models)

    def heart_beat(self, name: str, queue_length: int) -> bool:
        """Records a heartbeat; False if the worker is not registered."""
        worker = self.workers().get(name)
        if worker is None:
            return False
        worker.status = worker.status.model_copy(update={"queue_length": queue_length})
        worker.last_seen = self.clock()
        return True

    def remove(self, name: str, why: str) -> None:
        """Drops a worker, if it is registered."""
        if self._workers.pop(name, None) is not None:
            logger.info("dropped %s: %s", name, why)

    def lose(self, name: str) -> None:
        """Drops a worker that could not be reached, unless it sends no heartbeats that would bring it back."""
        worker = self._workers.get(name)
        if worker is not None and worker.check_heart_beat:
            self.remove(name, "it could not be reached")

    def workers(self) -> dict[str, Worker]:
        """Drops silent workers; returns the others in the order of their registration."""
        oldest = self.clock() - self.expiration
        for name, worker in list(self._workers.items()):
            if worker.check_heart_beat and worker.last_seen < oldest:
                self.remove(name, f"silent for {self.expiration:g} s")
        return dict(self._workers)

    def models(self) -> list[str]:
        """Lists the names of the served models, sorted."""
        return sorted({model for worker in self.workers().values() for model in worker.status.model_names})

    def conv_modes(self) -> dict[str, str]:
        """Maps models to the prompt templates that their workers state; none for a model whose workers differ."""
        stated: dict[str, set[str]] = {}
        for worker in self.workers().values():
            for model in worker.status.model_names:
                if model in worker.status.conv_modes:
                    stated.setdefault(model, set()).add(worker.status.conv_modes[model])
        return {model: min(names) for model, names in sorted(stated.items()) if len(names) == 1}

    def status(self) -> WorkerStatus:
        """Adds all workers' status up to that of one worker, within the limits of one."""
        reported = [worker.status for worker in self.workers().values()]
        speed, queue = sum(status.speed for status in reported), sum(status.queue_length for status in reported)
        names, modes = self.models()[:MAX_ITEMS], self.conv_modes()
        return WorkerStatus(
            model_names=names,
            conv_modes={name: modes[name] for name in names if name in modes},
            speed=min(speed, MAX_NUMBER),
            queue_length=min(queue, MAX_NUMBER),
        )

    def choose(self, model: str, excluded: Collection[str] = (), finishes: bool = True) -> str | None:
        """Chooses the worker for the next request, which then counts in its queue; None if no worker serves the model.

        Args:
            model: The model that it must serve.
            excluded: Workers not to choose.
            finishes: Whether `finish` will be called. If not, only a heartbeat corrects the queue's length, so nothing
                is added for a worker that sends none.
        """
        able = {
            name: worker
            for name, worker in self.workers().items()
            if model in worker.status.model_names and worker.status.speed > 0 and name not in excluded
        }
        if not able:
            return None
        if self.dispatch == "lottery":
            (name,) = self._random.choices(list(able), [worker.status.speed for worker in able.values()])
        else:
            name = min(able, key=lambda name: (able[name].wait, able[name].turn))
        worker = able[name]
        worker.turn = next(self._turns)
        worker.status.queue_length += finishes or worker.check_heart_beat
        return name

    def finish(self, name: str) -> None:
        """Records that a worker has finished a request that it was chosen for."""
        worker = self._workers.get(name)
        if worker is not None:
            worker.status.queue_length = max(0, worker.status.queue_length - 1)
