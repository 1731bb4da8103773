"""Batches by tokens: within their bound, every sample once, and the same number for every process in every epoch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.train.data.packing import assign_rows
from llava.train.data.token_batches import TokenBatchSampler, fill_rows_best_fit, round_lengths, split_rows

LENGTHS = st.lists(st.integers(0, 120), min_size=1, max_size=60).filter(any)
BUDGET = st.integers(1, 300)
CAPACITY = st.none() | st.integers(1, 150)
WORLD = st.integers(1, 4)
ACCUMULATION = st.integers(1, 3)


def draw(lengths, budget, capacity=None, world=1, accumulation=1, epoch=0, seed=0) -> list[list[list[int]]]:
    """The batches of each process."""
    samplers = [TokenBatchSampler(lengths, budget, capacity, world, rank, accumulation, seed) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return [list(sampler) for sampler in samplers]


def cost(lengths: list[int], batch: list[int], capacity: int | None) -> int:
    """Size of the padded batch: rows x longest, the rows as the collator packs them."""
    own = [lengths[i] for i in batch]
    rows = range(len(own)) if capacity is None else assign_rows(own, capacity)
    totals: Counter[int] = Counter()
    for row, length in zip(rows, own, strict=True):
        totals[row] += length
    return len(totals) * max(totals.values(), default=0)


@given(LENGTHS, BUDGET, CAPACITY, WORLD, ACCUMULATION, st.integers(0, 3))
def test_every_usable_sample_comes_once(lengths, budget, capacity, world, accumulation, epoch):
    ranks = draw(lengths, budget, capacity, world, accumulation, epoch)
    found = [i for batches in ranks for batch in batches for i in batch]
    assert sorted(found) == [i for i, length in enumerate(lengths) if length]


@given(LENGTHS, BUDGET, CAPACITY, WORLD, ACCUMULATION)
def test_a_batch_is_within_the_bound_or_holds_one_sample(lengths, budget, capacity, world, accumulation):
    for batches in draw(lengths, budget, capacity, world, accumulation):
        for batch in batches:
            assert cost(lengths, batch, capacity) <= budget or len(batch) == 1


@given(LENGTHS, BUDGET, CAPACITY, WORLD, ACCUMULATION)
def test_every_process_has_whole_steps_and_the_same_number_in_every_epoch(
    lengths, budget, capacity, world, accumulation
):
    sampler = TokenBatchSampler(lengths, budget, capacity, world, 0, accumulation)
    assert len(sampler) % accumulation == 0
    for epoch in range(3):
        ranks = draw(lengths, budget, capacity, world, accumulation, epoch)
        assert [len(batches) for batches in ranks] == [len(sampler)] * world


@given(LENGTHS, BUDGET, CAPACITY, WORLD, ACCUMULATION)
def test_batches_are_empty_only_where_no_other_could_be_split(lengths, budget, capacity, world, accumulation):
    batches = [batch for own in draw(lengths, budget, capacity, world, accumulation) for batch in own]
    if not all(batches):
        assert max(map(len, batches)) == 1
        assert batches.count([]) < world * accumulation


def test_the_order_depends_on_seed_and_epoch_alone():
    lengths = list(range(1, 200))
    for capacity in (None, 200):
        orders = [draw(lengths, 400, capacity, 2, epoch=epoch, seed=seed) for seed in (0, 1) for epoch in (0, 1)]
        np.random.seed(5)
        assert orders[0] == draw(lengths, 400, capacity, 2)
        assert all(one != other for i, one in enumerate(orders) for other in orders[:i])


def test_samples_meet_others_in_each_epoch():
    rng = np.random.default_rng(0)
    lengths = rng.integers(40, 2000, 5000).tolist()
    for capacity in (None, 2048):
        first, second = ({frozenset(b) for b in draw(lengths, 16384, capacity, epoch=epoch)[0]} for epoch in (0, 1))
        assert len(first & second) < 0.05 * len(first)


def realistic_lengths() -> np.ndarray:
    """A mix of text, of images with short answers and of long conversations."""
    rng = np.random.default_rng(0)
    parts = [rng.integers(20, 200, 800), 576 + rng.integers(20, 120, 2000), 576 + rng.integers(200, 1400, 400)]
    return rng.permutation(np.concatenate(parts))


def test_little_is_padding_and_batches_are_nearly_full():
    lengths = realistic_lengths()
    for capacity, padding, unused in ((None, 0.06, 0.1), (2048, 0.03, 0.06)):
        batches = draw(lengths, 16384, capacity)[0]
        costs = [cost(lengths, batch, capacity) for batch in batches]
        assert 1 - lengths.sum() / sum(costs) < padding
        assert 1 - np.mean(costs) / 16384 < unused


def test_the_batches_of_a_step_cost_about_the_same():
    lengths = realistic_lengths()
    for capacity in (None, 2048):
        ranks = draw(lengths, 16384, capacity, world=4, accumulation=2)
        costs = np.array([[cost(lengths, batch, capacity) for batch in batches] for batches in ranks])
        steps = costs.reshape(4, -1, 2).transpose(1, 0, 2).reshape(-1, 8)
        assert np.median(steps.min(1) / steps.max(1)) > 0.95


@given(st.lists(st.integers(1, 60), max_size=60), st.integers(1, 50))
def test_rows_are_filled_within_their_capacity(lengths, capacity):
    lengths.sort(reverse=True)
    rows = fill_rows_best_fit(lengths, capacity)
    for row in range(max(rows, default=-1) + 1):
        own = [length for length, number in zip(lengths, rows, strict=True) if number == row]
        assert sum(own) <= capacity or len(own) == 1


def test_a_sample_goes_where_the_least_room_is_left():
    assert fill_rows_best_fit([7, 6, 4, 3, 2], 10) == [0, 1, 1, 0, 2]


def test_rows_of_most_samples_are_halved_first():
    assert split_rows([0, 1, 1, 0, 1, 1, 2], 4) == [0, 1, 1, 0, 2, 2, 3]
    assert split_rows([0, 1], 5) == split_rows([0, 1], 1) == [0, 1]


@given(st.lists(st.integers(1, 10_000), min_size=1), st.integers(1, 10_000))
def test_rounding_is_by_a_sixteenth_at_most_and_respects_the_bound(lengths, most):
    exact = np.array(lengths)
    rounded = round_lengths(exact, most)
    assert (rounded >= exact).all()
    assert (rounded <= exact * 17 / 16).all()
    assert (rounded[exact <= most] <= most).all()


def test_what_cannot_be_batched_is_an_error():
    with pytest.raises(ValueError, match="none of the 2 samples can be used"):
        TokenBatchSampler([0, 0], 10)
    with pytest.raises(ValueError, match="batch_tokens is 0; it must be at least 1"):
        TokenBatchSampler([1], 0)
    with pytest.raises(ValueError, match="sample 1 has -3 tokens"):
        TokenBatchSampler([1, -3], 10)
    with pytest.raises(ValueError, match="rank is 2; allowed are 0 to 1"):
        TokenBatchSampler([1], 10, None, 2, 2)
