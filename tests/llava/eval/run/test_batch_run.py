"""How many processes prepare images beside the model."""

from __future__ import annotations

import os

import pytest

from llava.eval.run.batch_run import choose_workers


@pytest.mark.parametrize(
    ("cores", "processes", "device", "workers"),
    [
        (2, 1, "cpu", 1),
        (16, 1, "cpu", 8),
        (1, 1, "cpu", 1),
        (2, 2, "cpu", 0),  # each core has a model
        (4, 2, "cpu", 1),
        (8, 8, "cuda", 1),  # the GPU computes meanwhile
        (64, 4, "cuda", 8),
    ],
)
def test_workers_take_the_cores_that_models_leave(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, device: str, workers: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert choose_workers(None, processes, device) == workers
    assert choose_workers(3, processes, device) == 3
