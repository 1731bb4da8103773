"""The log of a run shows the learning rates of what it trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.llava.train.handwritten import write_data
from tests.llava.train.runs import logged, train_on


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, "iitt")
    return folder


@pytest.mark.parametrize(
    ("changes", "rate", "projector_rate"),
    [({"tune_mm_mlp_adapter": True}, [5e-4], []), ({"lora_enable": True}, [1e-3], [5e-4])],
)
def test_the_log_has_the_learning_rates_of_what_is_trained(bases, data, tmp_path, changes, rate, projector_rate):
    train_on(bases / "llava", data, tmp_path, max_steps=1, mm_projector_lr=5e-4, **changes)
    assert logged(tmp_path, "learning_rate") == rate
    assert logged(tmp_path, "projector_learning_rate") == projector_rate
