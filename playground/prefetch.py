"""Draws the batches of coming steps in worker processes, so that a fast device does not wait for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")

AHEAD = 4
"""Batches that each worker draws ahead."""


class _Batches(Dataset[T]):
    """A step's batch, by the number of the step."""

    def __init__(self, draw: Callable[[int], T]) -> None:
        self.draw = draw

    def __getitem__(self, step: int) -> T:
        return self.draw(step)


class Prefetcher(Generic[T]):
    """Gives the batch of a step; the batch does not depend on the number of workers."""

    def __init__(self, draw: Callable[[int], T], steps: int, workers: int) -> None:
        """Prepares to draw; no worker starts before the first batch is taken.

        Args:
            draw: makes the batch of a step from the step alone; it runs in the workers, on the CPU.
            steps: number of steps; nothing is drawn beyond the last.
            workers: number of processes; with 0 each batch is drawn when it is taken.
        """
        self.draw, self.steps, self.workers = draw, steps, workers
        self._next = 0
        self._coming: Iterator[T] = iter(())

    def take(self, step: int) -> T:
        """Takes a step's batch; steps are best taken in order, since any other order restarts the workers."""
        if self.workers == 0:
            return self.draw(step)
        if step != self._next or step == 0:
            self._coming = self._start(step)
        self._next = step + 1
        return next(self._coming)

    def _start(self, step: int) -> Iterator[T]:
        loader = DataLoader(
            _Batches(self.draw),
            sampler=range(step, self.steps),
            batch_size=None,
            num_workers=self.workers,
            collate_fn=_as_drawn,
            prefetch_factor=AHEAD,
        )
        return iter(loader)


def _as_drawn(batch: T) -> T:
    return batch
