"""Batches of at most a number of tokens, padded or packed, in equal numbers for every process.

How many samples of which length a batch holds follows from the lengths alone; which samples of about that length they
are is drawn in each epoch. So all epochs have the same number of batches.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Sampler

Array = np.ndarray[Any, np.dtype[Any]]

LENGTHS_PER_OCTAVE = 16
"""Samples whose lengths differ by up to a sixteenth change places between epochs."""


class TokenBatchSampler(Sampler[list[int]]):
    """Lists the batches of one process, one list of indices each, different in each epoch.

    A padded batch has at most `batch_tokens` tokens, padding included. A packed batch has at most
    `batch_tokens // capacity` rows of `capacity` tokens (below `capacity`: one row of `batch_tokens`), and its samples
    come row after row, so that `assign_rows` finds no more rows. A sample above the bound is a batch alone. The batches
    of one optimizer step cost about the same. Every sample comes once per epoch; if there are too few to give every
    process the same number of batches, some of the last step are empty.
    """

    def __init__(
        self,
        lengths: Sequence[int] | Array,
        batch_tokens: int,
        capacity: int | None = None,
        world_size: int = 1,
        rank: int = 0,
        accumulation: int = 1,
        seed: int = 0,
    ) -> None:
        """
        Args:
            lengths: (N,), tokens of each sample in the language model; 0 leaves a sample out.
            batch_tokens: the bound.
            capacity: tokens of a packed row; None pads.
            world_size: processes.
            rank: this process.
            accumulation: batches of an optimizer step in each process.
            seed: of the order; it and the epoch alone decide.

        Raises:
            ValueError: no samples, or a number out of range.
        """
        sizes = np.asarray(lengths, dtype=np.int64)
        for name, number in (
            ("batch_tokens", batch_tokens),
            ("capacity", 1 if capacity is None else capacity),
            ("world_size", world_size),
            ("accumulation", accumulation),
        ):
            if number < 1:
                raise ValueError(f"{name} is {number}; it must be at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; allowed are 0 to {world_size - 1}")
        if len(sizes) and sizes.min() < 0:
            raise ValueError(f"sample {int(sizes.argmin())} has {sizes.min()} tokens; lengths must be at least 0")
        self._samples = sizes.nonzero()[0]
        if not len(self._samples):
            raise ValueError(f"none of the {len(sizes)} samples can be used: there is nothing to train on")
        self.world_size, self.rank, self.seed, self.epoch = world_size, rank, seed, 0
        self._together = world_size * accumulation
        used = sizes[self._samples]
        self._plan: _Plan
        if capacity is None:
            self._plan = _PaddedPlan(used, batch_tokens, self._together)
        else:
            self._plan = _PackedPlan(used, batch_tokens, capacity, self._together)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose batches the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return _round_up(self._plan.count, self._together) // self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        batches, costs = self._plan.draw(rng)
        by_cost = np.argsort(-np.asarray(costs), kind="stable").tolist()
        empty = _round_up(len(batches), self._together) - len(batches)
        steps = [
            (by_cost + [None] * empty)[start : start + self._together]
            for start in range(0, len(by_cost), self._together)
        ]
        for number in rng.permutation(len(steps)):
            step = [steps[number][i] for i in rng.permutation(self._together)]
            for batch in step[self.rank :: self.world_size]:
                yield [] if batch is None else self._samples[batches[batch]].tolist()


class _Plan(Protocol):
    """How many batches there are, and a draw of them: indices and cost, in tokens, of each."""

    count: int

    def draw(self, rng: np.random.Generator) -> tuple[list[Array], list[int]]: ...


class _PaddedPlan:
    """Batches of samples of similar length, cut out of the samples sorted by rounded length."""

    def __init__(self, lengths: Array, budget: int, together: int) -> None:
        self._lengths = lengths
        self._rounded = round_lengths(lengths, budget)
        descending = np.sort(self._rounded)[::-1].tolist()
        starts, start = [], 0
        while start < len(descending):
            starts.append(start)
            start += max(1, budget // descending[start])
        slices = list(pairwise([*starts, len(descending)]))
        self._slices = split_largest(slices, _round_up(len(slices), together))
        self.count = len(self._slices)

    def draw(self, rng: np.random.Generator) -> tuple[list[Array], list[int]]:
        order = _shuffle_equals(self._rounded, rng)
        batches = [order[start:end] for start, end in self._slices]
        return batches, [len(batch) * int(self._lengths[batch].max()) for batch in batches]


class _PackedPlan:
    """Batches of full rows, which are drawn from all rows at random. Samples too long for a row are batches alone."""

    def __init__(self, lengths: Array, budget: int, capacity: int, together: int) -> None:
        self._lengths = lengths
        room, most = min(capacity, budget), max(1, budget // capacity)
        descending = np.sort(lengths)[::-1]
        self._alone = int((descending > room).sum())  # the first rows, since the longest samples come first
        rows = fill_rows_best_fit(descending.tolist(), room)
        count = self._alone + math.ceil((1 + max(rows) - self._alone) / most)
        rows = split_rows(rows, _round_up(count, together))
        self._rows = np.asarray(rows)  # of each sample, from long to short
        self._samples = np.bincount(self._rows)  # of each row
        self._tokens = np.bincount(self._rows, descending).astype(np.int64)  # of each row
        self.count = min(_round_up(count, together), len(self._samples))

    def draw(self, rng: np.random.Generator) -> tuple[list[Array], list[int]]:
        alone, every = self._alone, len(self._samples)
        rows = np.concatenate([np.arange(alone), alone + rng.permutation(every - alone)])
        batches = self.count - alone
        # Where each batch begins in `rows`; those of several rows have equal numbers of them, or one more.
        starts = np.concatenate([np.arange(alone), alone + np.arange(batches) * (every - alone) // max(batches, 1)])
        place = np.empty(every, dtype=np.int64)
        place[rows] = np.arange(every)
        in_rows = _shuffle_equals(self._lengths, rng)[np.argsort(place[self._rows], kind="stable")]
        ends = self._samples[rows].cumsum()[np.append(starts[1:], every) - 1]
        longest = np.maximum.reduceat(self._tokens[rows], starts)
        costs = longest * np.diff(starts, append=every)
        return np.split(in_rows, ends[:-1]), costs.tolist()


def round_lengths(lengths: Array, most: int) -> Array:
    """Rounds lengths up by at most a sixteenth; those up to `most` stay within it, those above stay as they are.

    Args:
        lengths: int64 (N,), at least 1.
        most: a bound.
    """
    octave = np.floor(np.log2(lengths)).astype(np.int64)
    step = np.maximum(2**octave // LENGTHS_PER_OCTAVE, 1)
    rounded = -(-lengths // step) * step
    return np.where(lengths <= most, np.minimum(rounded, most), lengths)


def fill_rows_best_fit(lengths: Sequence[int], capacity: int) -> list[int]:
    """Fills rows with samples, each into the row with the least room that is enough (best fit).

    Args:
        lengths: from long to short, at least 1.
        capacity: tokens of a row; a longer sample gets a row alone.

    Returns:
        The row of each sample, numbered as they begin.
    """
    rows: list[int] = []
    count = 0
    with_room: dict[int, list[int]] = {}  # room -> rows
    rooms = 0  # bit r is set where `with_room[r]` is not empty
    for length in lengths:
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row, count = capacity, count, count + 1
        rows.append(row)
        if room > length:
            with_room.setdefault(room - length, []).append(row)
            rooms |= 1 << (room - length)
    return rows


def split_largest(slices: Sequence[tuple[int, int]], wanted: int) -> list[tuple[int, int]]:
    """Halves the longest of some slices (start, end) until there are `wanted`, or all have one element."""
    heap = [(start - end, start, end) for start, end in slices]
    heapq.heapify(heap)
    while len(heap) < wanted and heap and heap[0][0] < -1:
        _, start, end = heapq.heappop(heap)
        middle = (start + end) // 2
        heapq.heappush(heap, (start - middle, start, middle))
        heapq.heappush(heap, (middle - end, middle, end))
    return sorted((start, end) for _, start, end in heap)


def split_rows(rows: Sequence[int], wanted: int) -> list[int]:
    """Halves the rows of most samples until there are `wanted`, or all hold one sample.

    Args:
        rows: the row of each sample.
        wanted: rows.

    Returns:
        The same with more rows, numbered in the order of those that they are part of.
    """
    counts = np.bincount(rows)
    if len(counts) >= wanted:
        return list(rows)
    slices = split_largest(list(pairwise([0, *counts.cumsum().tolist()])), wanted)
    parts = np.empty(len(rows), dtype=np.int64)
    parts[np.argsort(rows, kind="stable")] = np.repeat(np.arange(len(slices)), [end - start for start, end in slices])
    return parts.tolist()


def _shuffle_equals(sizes: Array, rng: np.random.Generator) -> Array:
    """Sorts indices from the largest size to the smallest, those of equal sizes at random."""
    return np.lexsort((rng.random(len(sizes)), -sizes))


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
