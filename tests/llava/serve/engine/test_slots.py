"""Slots of keys and values hold what separate rows hold, however rows come, grow and go."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from llava.serve.engine import slots
from llava.serve.engine.slots import SlotCache, resize_slots

HEADS, WIDTH, LAYERS = 2, 3, 2


def states(rows: int, queries: int) -> Tensor:
    return torch.randn(rows, HEADS, queries, WIDTH)


def extend(cache: SlotCache, naive: list[list[Tensor]], counts: list[int]) -> None:
    """Runs a pass of random keys (values are their negatives), and checks what attention would see."""
    writing = cache.begin(counts)
    queries = max(counts)
    for layer in range(LAYERS):
        new = states(len(counts), queries)
        keys, values = cache.update(new, -new, layer)
        for row, count in enumerate(counts):
            naive[row][layer] = torch.cat([naive[row][layer], new[row, :, queries - count :]], dim=1)
            assert torch.equal(keys[row, :, : naive[row][layer].shape[1]], naive[row][layer])
            assert torch.equal(values[row, :, : naive[row][layer].shape[1]], -naive[row][layer])
        assert keys.shape == (len(counts), HEADS, writing.end, WIDTH)
    cache.advance()


def empty_rows(rows: int) -> list[list[Tensor]]:
    return [[torch.empty(HEADS, 0, WIDTH) for _ in range(LAYERS)] for _ in range(rows)]


@pytest.mark.parametrize("seed", range(4))
def test_rows_join_grow_and_leave_as_if_they_were_apart(seed: int) -> None:
    torch.manual_seed(seed)
    chance = random.Random(seed)
    cache, naive = SlotCache(LAYERS), empty_rows(0)
    for _ in range(60):
        action = chance.choice(["join", "step", "step", "leave"])
        if action == "join":
            added, rows = SlotCache(LAYERS, [0, 0]), empty_rows(2)
            extend(added, rows, [chance.randint(1, 90), chance.randint(1, 90)])
            cache.append(added)
            naive += rows
        elif naive and action == "step":
            extend(cache, naive, [1] * len(naive))
        elif naive:
            row = chance.randrange(len(naive))
            cache.remove(row)
            naive[row] = naive[-1]
            naive.pop()
        assert cache.lengths == [row[0].shape[1] for row in naive]
        for row, layers in enumerate(naive):
            for (keys, values), expected in zip(cache.read(row, cache.lengths[row]), layers, strict=True):
                assert torch.equal(keys, expected) and torch.equal(values, -expected)


def test_a_pass_that_failed_midway_can_be_repeated() -> None:
    cache, naive = SlotCache(LAYERS, [0]), empty_rows(1)
    extend(cache, naive, [5])
    cache.begin([1])
    cache.update(states(1, 1), states(1, 1), 0)  # and no further layer
    extend(cache, naive, [1])
    assert cache.lengths == [6]


@pytest.mark.parametrize("fails", range(1, 2 * LAYERS + 1))
def test_a_change_of_size_that_ran_out_of_memory_midway_can_be_repeated(
    monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    """Few long rows take the place of many short ones, and memory runs out at some copy; then many rows join again."""
    cache, naive, resized = SlotCache(LAYERS, [0] * 12), empty_rows(12), 0

    def resize(slots: Tensor, rows: int, length: int) -> Tensor:
        nonlocal resized
        resized += 1
        if resized == fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return resize_slots(slots, rows, length)

    extend(cache, naive, [5] * 12)
    for row in range(11, 0, -1):
        cache.remove(row)
    monkeypatch.setattr(slots, "resize_slots", resize)
    with pytest.raises(torch.OutOfMemoryError):
        cache.begin([200])
    added, rows = SlotCache(LAYERS, [0] * 9), empty_rows(9)
    extend(added, rows, [5] * 9)
    cache.append(added)
    extend(cache, [*naive[:1], *rows], [1] * 10)


def test_nothing_of_a_row_of_nan_is_left_behind() -> None:
    """A key that is not attended to has weight 0, and 0 times NaN is NaN."""
    cache = SlotCache(LAYERS)
    for fill in (1.0, torch.nan):
        added = SlotCache(LAYERS, [0])
        added.begin([9])
        for layer in range(LAYERS):
            added.update(*[torch.full((1, HEADS, 9, WIDTH), fill)] * 2, layer)
        added.advance()
        cache.append(added)
    cache.remove(1)
    short = SlotCache(LAYERS, [0])
    extend(short, empty_rows(1), [2])
    cache.append(short)
    assert all(layer.keys.isfinite().all() and layer.values.isfinite().all() for layer in cache.layers)


def test_slots_shrink_when_long_rows_have_left_and_are_freed_with_the_last() -> None:
    cache = SlotCache(LAYERS)
    for length in (2000, 10):
        added = SlotCache(LAYERS, [0])
        extend(added, empty_rows(1), [length])
        cache.append(added)
    large = cache.layers[0].keys.numel()
    cache.remove(0)
    cache.begin([1])
    assert cache.layers[0].keys.numel() * 4 < large
    cache.remove(0)
    assert cache.layers[0].keys is None and cache.lengths == []


def test_slots_have_room_to_spare_within_their_bound_only() -> None:
    cache, naive = SlotCache(LAYERS, [0] * 4), empty_rows(4)
    extend(cache, naive, [100] * 4)
    assert cache.layers[0].keys.shape[2] > 100
    cache.bound(4 * 110)
    for _ in range(10):
        extend(cache, naive, [1] * 4)
        assert cache.layers[0].keys[:, 0, :, 0].numel() <= 4 * 110
    extend(cache, naive, [1] * 4)  # what is needed is there in any case
    assert cache.lengths == [111] * 4


def test_starts_are_copied_from_rows_of_another_cache() -> None:
    once, naive = SlotCache(LAYERS, [0, 0]), empty_rows(2)
    extend(once, naive, [7, 4])
    cache, copied = SlotCache(LAYERS, [0] * 4), empty_rows(4)
    cache.reserve(4, 9)
    cache.copy(once, [3, 0, 1], [0, 1, 0])
    assert cache.lengths == [4, 7, 0, 7]
    for row, source in ((3, 0), (0, 1), (1, 0)):
        copied[row] = list(naive[source])
    extend(cache, copied, [3, 2, 9, 1])


def test_a_row_that_was_read_is_written_to_another_cache() -> None:
    cache, naive = SlotCache(LAYERS, [0]), empty_rows(1)
    extend(cache, naive, [7])
    other = SlotCache(LAYERS, [0])
    other.reserve(1, 7)
    other.write(0, cache.read(0, 4))
    naive = [[layer[:, :4] for layer in naive[0]]]
    extend(other, naive, [3])
    assert other.lengths == [7]
