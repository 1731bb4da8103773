"""accelerate's state, fresh and on the CPU for each test, and short reports of `qlip fit`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState

from qlip.prior import train


@pytest.fixture(autouse=True)
def accelerate_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """accelerate keeps one state per process; every test gets a fresh one."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(autouse=True)
def evaluate_two_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run evaluates three times, by default eight batches of held-out images each."""
    monkeypatch.setattr(train, "EVALUATION_BATCHES", 2)
