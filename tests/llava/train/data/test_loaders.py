"""Batches of an evaluation: every sample once, and the same number of batches in every process."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.train.data.loaders import make_loader, share_batches

ARGS = SimpleNamespace(
    dataloader_num_workers=0,
    dataloader_pin_memory=False,
    dataloader_persistent_workers=False,
    dataloader_prefetch_factor=None,
    dataloader_multiprocessing_context=None,
)


@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 5))
def test_every_sample_is_evaluated_once(samples, size, world_size):
    shares = [share_batches(samples, size, rank, world_size) for rank in range(world_size)]
    seen = [index for share in shares for batch in share for index in batch]
    assert sorted(seen) == list(range(samples))
    assert len({len(share) for share in shares}) == 1
    assert all(len(batch) <= size for share in shares for batch in share)
    assert len(shares[0]) == -(-samples // (size * world_size))


def test_processes_take_turns():
    assert share_batches(7, 2, 0, 2) == [[0, 1], [4, 5]]
    assert share_batches(7, 2, 1, 2) == [[2, 3], [6]]
    assert share_batches(5, 2, 1, 2) == [[2, 3], []]


def test_a_loader_collates_the_batches_in_order():
    loader = make_loader("abcdef", [[5, 0], [], [2]], "".join, ARGS)
    assert list(loader) == ["fa", "", "c"] and len(loader) == 3


@pytest.mark.parametrize("epoch", [0, 3])
def test_a_sampler_hears_of_the_epoch(epoch):
    class Sampler:
        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            return iter([[self.epoch]])

    loader = make_loader("abcdef", Sampler(), "".join, ARGS)
    loader.set_epoch(epoch)
    assert list(loader) == ["abcdef"[epoch]]
