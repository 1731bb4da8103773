"""Keys and values of a batch whose rows come and go: each row has a slot, filled from its start.

transformers' `DynamicCache` keeps rows of one length, padded on the left, and copies all keys at each token; its paged
cache takes token ids only, and builds its masks and positions itself. Here a row is added, removed and continued
without touching the others, and a step writes one token per row.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

BLOCK = 64  # least number of tokens by which slots grow
ROW_BLOCK = 4  # least number of rows by which they grow

KeysValues = list[tuple[Tensor, Tensor]]
"""One row's keys and values in each layer, (H, T, D) both."""


@dataclass(frozen=True)
class Writing:
    """Where the new tokens of one forward pass belong."""

    starts: Sequence[int]
    """Tokens of each row before the pass."""
    counts: Sequence[int]
    """New tokens of each row, padded on the left."""
    rows: Tensor
    """int64 (N,): rows that have new ones."""
    places: Tensor
    """int64 (N,): `starts` of the rows in `rows`."""
    end: int
    """Tokens of the longest row after the pass."""

    def to(self, device: torch.device) -> Writing:
        """Moves the indices to a device."""
        if device == self.rows.device:
            return self
        return replace(self, rows=self.rows.to(device), places=self.places.to(device))

    def write(self, slots: Tensor, states: Tensor) -> Tensor:
        """Writes new states, (B, H, Q, D), to their slots; returns a view of all, (B, H, K, D)."""
        queries = states.shape[2]
        if queries == 1:  # a token of each row, in one operation
            slots[self.rows, :, self.places] = states[self.rows, :, 0]
        else:  # several times as fast as by the index of each token
            for row, (start, count) in enumerate(zip(self.starts, self.counts, strict=True)):
                slots[row, :, start : start + count] = states[row, :, queries - count :]
        return slots[: len(self.starts), :, : self.end]


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, (S, H, C, D): S slots of C tokens, 0 where no token was written."""

    def __init__(self) -> None:
        super().__init__()
        self.writing: Writing | None = None
        self.capacity = (0, 0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates the slots; the name is transformers'."""
        self._allocate(key_states, value_states)

    def _allocate(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Allocates the slots, on the device and in the type of the first keys, and returns them."""
        rows, length = self.capacity
        keys, values = (
            states.new_zeros(rows, states.shape[1], length, states.shape[3]) for states in (key_states, value_states)
        )
        self.keys, self.values, self.is_initialized = keys, values, True
        return keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes new keys and values, (B, H, Q, D), to their slots; returns views of all, (B, H, K, D)."""
        if self.writing is None:
            raise RuntimeError("the cache does not know how many tokens come: call SlotCache.begin first")
        keys, values = self.keys, self.values
        if keys is None or values is None:
            keys, values = self._allocate(key_states, value_states)
        writing = self.writing.to(keys.device)
        return writing.write(keys, key_states), writing.write(values, value_states)

    def resize(self, rows: int, length: int) -> None:
        """Changes the number of slots and their tokens; keeps what fits."""
        self.capacity = (rows, length)
        if self.keys is not None and self.values is not None:
            self.keys, self.values = (resize_slots(slots, rows, length) for slots in (self.keys, self.values))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Finds the number of keys, and of those dropped before them: none."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Finds the tokens of the longest row."""
        return 0 if self.writing is None else self.writing.end

    def get_max_length(self) -> int:
        """-1, no bound: slots grow."""
        return -1


def resize_slots(slots: Tensor, rows: int, length: int) -> Tensor:
    """Copies slots (S, H, C, D) to others, (rows, H, length, D), which are 0 elsewhere."""
    resized = slots.new_zeros(rows, slots.shape[1], length, slots.shape[3])
    kept_rows, kept = min(rows, slots.shape[0]), min(length, slots.shape[2])
    resized[:kept_rows, :, :kept] = slots[:kept_rows, :, :kept]
    return resized


def padded_capacity(needed: int, block: int) -> int:
    """Adds an eighth to what is needed, in whole blocks, so that slots seldom grow."""
    return -(-(needed + needed // 8) // block) * block


def padded_rows(rows: int) -> int:
    """Rounds up to whole blocks from three rows on, so that rows which join one by one seldom move the slots."""
    return rows if rows < 3 else padded_capacity(rows, ROW_BLOCK)


class SlotCache(Cache):
    """The keys and values of all layers, and the number of tokens of each row."""

    def __init__(self, layers: int, lengths: Sequence[int] = (), most: int = sys.maxsize, joins: bool = True) -> None:
        """
        Args:
            layers: Number of the language model's layers.
            lengths: Tokens of each row so far, 0 for new ones.
            most: See `bound`.
            joins: Whether there is to be room for rows that join.
        """
        super().__init__(layers=[SlotLayer() for _ in range(layers)])
        self.lengths = list(lengths)
        self.capacity = (0, 0)
        self.most, self.joins = most, joins
        self._counts: Sequence[int] = ()

    def begin(self, counts: Sequence[int]) -> Writing:
        """Makes room for the next forward pass; `advance` confirms it, and a pass that failed may be repeated.

        Args:
            counts: New tokens of each row; queries are padded on the left to the most of them.
        """
        ends = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        self.reserve(len(ends), max(ends))
        rows = [row for row, count in enumerate(counts) if count]
        places = torch.tensor([self.lengths[row] for row in rows])
        writing = Writing(self.lengths, counts, torch.tensor(rows), places, max(ends))
        keys = self.layers[0].keys
        writing = writing if keys is None else writing.to(keys.device)
        for layer in self.layers:
            layer.writing = writing
        self._counts = counts
        return writing

    def advance(self) -> None:
        """Counts the tokens of the forward pass that has succeeded."""
        self.lengths = [length + count for length, count in zip(self.lengths, self._counts, strict=True)]

    def reserve(self, rows: int, length: int) -> None:
        """Grows the slots to at least this number of rows and tokens; shrinks them where they are much larger."""
        have, wanted = self.capacity, (padded_rows(rows) if self.joins else rows, padded_capacity(length, BLOCK))
        new = tuple(
            want if need > had or 2 * want < had else had
            for need, want, had in zip((rows, length), wanted, have, strict=True)
        )
        if new[0] * new[1] > self.most:
            new = (rows, max(length, min(new[1], self.most // rows)))
        if new != have:
            self._resize(new[0], new[1])

    def bound(self, most: int) -> None:
        """Sets how many tokens the slots may have together, and frees what is beyond; rows that need more have more."""
        self.most = most
        if self.lengths:
            self.reserve(len(self.lengths), max(self.lengths))

    def shrink(self) -> None:
        """Frees the slots and tokens that no row needs."""
        if self.lengths:
            self._resize(len(self.lengths), max(self.lengths))

    def _resize(self, rows: int, length: int) -> None:
        """Changes all layers; where memory runs out midway, the capacity is what every layer has."""
        self.capacity = (min(rows, self.capacity[0]), min(length, self.capacity[1]))
        for layer in self.layers:
            layer.resize(rows, length)
        self.capacity = (rows, length)

    def append(self, other: SlotCache) -> None:
        """Appends the rows of another cache, which must not be used afterwards."""
        if not self.lengths:
            self.layers, self.lengths, self.capacity = other.layers, other.lengths, other.capacity
            return
        first, lengths = len(self.lengths), [*self.lengths, *other.lengths]
        self.reserve(len(lengths), max(lengths))
        longest = max(other.lengths)
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            if mine.keys is None:
                mine.lazy_initialization(theirs.keys, theirs.values)
            for slots, added in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
                slots[first : len(lengths), :, :longest] = added[: len(other.lengths), :, :longest]
        self.lengths = lengths

    def remove(self, row: int) -> None:
        """Removes a row; the last row takes its place.

        The free slot is cleared: a key that is not attended to has weight 0, but 0 times NaN would be NaN.
        """
        last = len(self.lengths) - 1
        for layer in self.layers:
            for slots in (layer.keys, layer.values):
                slots[row] = slots[last]
                slots[last] = 0
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths:
            self.clear()

    def clear(self) -> None:
        """Frees all slots."""
        self.lengths, self.capacity = [], (0, 0)
        for layer in self.layers:
            layer.keys = layer.values = layer.writing = None
            layer.is_initialized, layer.capacity = False, (0, 0)

    def count_bytes(self, tokens: int) -> int:
        """Counts the bytes that the keys and values of a number of tokens take in one row."""
        one = [slots[:1, :, :1].nbytes for layer in self.layers for slots in (layer.keys, layer.values)]
        return tokens * sum(one)

    def read(self, row: int, length: int) -> KeysValues:
        """Copies the first `length` keys and values of a row."""
        return [(layer.keys[row, :, :length].clone(), layer.values[row, :, :length].clone()) for layer in self.layers]

    def copy(self, other: SlotCache, rows: Sequence[int], sources: Sequence[int]) -> None:
        """Fills the starts of empty rows from all tokens of rows of another cache; room must be reserved."""
        longest = max(other.lengths)
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            if mine.keys is None:
                mine.lazy_initialization(theirs.keys, theirs.values)
            for slots, given in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
                slots[rows, :, :longest] = given[sources, :, :longest]
        for row, source in zip(rows, sources, strict=True):
            self.lengths[row] = other.lengths[source]

    def write(self, row: int, stored: KeysValues) -> None:
        """Fills the start of an empty row from `read`; room for it must be reserved."""
        length = stored[0][0].shape[1]
        for layer, (keys, values) in zip(self.layers, stored, strict=True):
            if layer.keys is None:
                layer.lazy_initialization(keys[None], values[None])
            layer.keys[row, :, :length], layer.values[row, :, :length] = keys, values
        self.lengths[row] = length
