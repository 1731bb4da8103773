"""LLaVA's sampler, from the words of its rule: one modality per global batch, similar lengths, even shares."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava.train import llava_trainer, sampler
from llava.train.sampler import (
    LengthGroupedSampler,
    choose_sampler,
    get_length_grouped_indices,
    get_modality_length_grouped_indices,
    split_to_even_chunks,
)

LENGTHS = st.lists(st.integers(-50, 50).filter(bool), max_size=80)
SIZE = st.integers(1, 4)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cut(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


@given(lengths=LENGTHS, batch=SIZE, world=SIZE)
def test_every_sample_comes_once_and_one_global_batch_at_most_is_mixed(lengths, batch, world):
    order = get_modality_length_grouped_indices(lengths, batch, world, seeded())
    assert sorted(order) == list(range(len(lengths)))
    size = batch * world
    modalities = [{lengths[i] > 0 for i in batch} for batch in cut(order, size)]
    pure = sum(length > 0 for length in lengths) // size + sum(length < 0 for length in lengths) // size
    assert all(len(found) == 1 for found in modalities[:pure])
    assert [len(found) for found in modalities].count(2) <= 1


@given(lengths=st.lists(st.integers(1, 50), max_size=80), batch=SIZE, world=SIZE)
def test_a_global_batch_is_sorted_and_dealt_to_processes_evenly(lengths, batch, world):
    order = get_length_grouped_indices(lengths, batch, world, seeded())
    assert sorted(order) == list(range(len(lengths)))
    for megabatch in cut(order, batch * world):
        if len(megabatch) == batch * world:
            for share in cut(megabatch, batch):
                assert [lengths[i] for i in share] == sorted((lengths[i] for i in share), reverse=True)
            # Longest first into the emptiest share: totals differ by no more than the longest sample.
            totals = [sum(lengths[i] for i in share) for share in cut(megabatch, batch)]
            assert max(totals) - min(totals) <= max(lengths[i] for i in megabatch)


@given(indices=st.lists(st.integers(0, 99), max_size=40, unique=True), chunks=st.integers(1, 6))
def test_chunks_hold_equal_numbers(indices, chunks):
    split = split_to_even_chunks(indices, list(range(100)), chunks)
    assert len(split) == chunks
    assert sorted(i for chunk in split for i in chunk) == sorted(indices)
    assert max(map(len, split)) - min(map(len, split)) <= 1


def test_chunks_of_even_total_length():
    lengths = [9, 8, 7, 6, 5, 1]
    assert split_to_even_chunks([0, 1, 2, 3, 4, 5], lengths, 2) == [[0, 3, 4], [1, 2, 5]]
    assert split_to_even_chunks([0, 1, 2, 3], lengths, 3) == [[0, 3], [1], [2]]


@pytest.mark.parametrize("sign", [1, -1])
def test_samples_of_one_modality_are_grouped_by_length(sign):
    lengths = [sign * (i % 7 + 1) for i in range(24)]
    order = get_modality_length_grouped_indices(lengths, 2, 3, seeded())
    assert sorted(order) == list(range(24))
    for megabatch in cut(order, 6):
        shares = cut(megabatch, 2)
        assert all(abs(lengths[long]) >= abs(lengths[short]) for long, short in shares)


def test_the_order_depends_on_seed_and_epoch_alone():
    lengths = [(-1) ** (i % 3) * (i % 11 + 1) for i in range(60)]

    def order(seed: int, epoch: int) -> list[int]:
        sampler = LengthGroupedSampler(2, 4, lengths, group_by_modality=True, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    before = torch.get_rng_state()
    first = order(3, 1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert order(3, 1) == first
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert len(LengthGroupedSampler(2, 4, lengths)) == 60


def test_a_generator_is_used_where_one_is_given():
    lengths = list(range(1, 30))
    runs = [list(LengthGroupedSampler(2, 2, lengths, seeded(seed))) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] == get_length_grouped_indices(lengths, 2, 2, seeded())
    assert runs[0] != runs[2]


def test_what_cannot_be_ordered_is_an_error():
    with pytest.raises(ValueError, match="sample 2 has length 0"):
        LengthGroupedSampler(2, 2, [1, -4, 0], group_by_modality=True)
    with pytest.raises(ValueError, match="sample 0 has length 0"):
        get_modality_length_grouped_indices([0], 1, 1)
    with pytest.raises(ValueError, match="needs lengths"):
        LengthGroupedSampler(2, 2)
    with pytest.raises(ValueError, match="batch_size is 0 and world_size 2"):
        LengthGroupedSampler(0, 2, [1])


def test_llavas_import_path_holds() -> None:
    for name in ("LengthGroupedSampler", "get_modality_length_grouped_indices", "split_to_even_chunks"):
        assert getattr(llava_trainer, name) is getattr(sampler, name)


def test_modalities_are_grouped_where_lengths_are_to_be_as_well() -> None:
    """As LLaVA's trainer, which asks for its own flag first."""
    data = SimpleNamespace(lengths=[5, 133, 7], modality_lengths=[-5, 5, -7])
    args = SimpleNamespace(train_batch_size=1, world_size=1, gradient_accumulation_steps=1)
    args.train_sampling_strategy, args.group_by_modality_length = "group_by_length", True
    both = choose_sampler(data, args, seed=0)
    assert (both.group_by_modality, both.lengths) == (True, data.modality_lengths)
    args.group_by_modality_length = False
    by_length = choose_sampler(data, args, seed=0)
    assert (by_length.group_by_modality, by_length.lengths) == (False, data.lengths)
