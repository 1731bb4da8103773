"""Batches that are drawn ahead: the same as without, from any step on."""

from __future__ import annotations

import numpy as np
import pytest

from playground.prefetch import Prefetcher


def draw(step: int) -> np.ndarray:
    return np.random.default_rng((3, step)).random(2)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("first", [0, 3])
def test_batches_are_those_of_their_steps(workers, first):
    batches = Prefetcher(draw, 5, workers)
    assert [batches.take(step).tolist() for step in range(first, 5)] == [
        draw(step).tolist() for step in range(first, 5)
    ]


def test_a_step_can_be_taken_again():
    batches = Prefetcher(draw, 3, workers=1)
    assert [batches.take(step).tolist() for step in (0, 1, 0, 2)] == [draw(step).tolist() for step in (0, 1, 0, 2)]


def test_a_batch_that_cannot_be_drawn_is_an_error_of_the_run():
    def refuse(step: int) -> None:
        raise ValueError(f"no batch {step}")

    with pytest.raises(ValueError, match="no batch 0"):
        Prefetcher(refuse, 2, workers=1).take(0)
