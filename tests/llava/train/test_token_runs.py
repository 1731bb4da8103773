"""Runs with batches by tokens and with packing: the losses of padded batches, from the command line to the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava.train.data.lengths import LENGTHS_FILE
from tests.llava.train.handwritten import write_data
from tests.llava.train.runs import logged, train_on

KINDS = "ittit"
QLIP = {"qlip": True, "qlip.alpha": 0.3, "qlip.coarsest": "any", "qlip.geometry": "grid", "qlip.noise_floor": False}
ALL = 1_000_000
"""Tokens: more than all samples have."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, KINDS)
    return folder


def test_steps_on_all_samples_have_the_losses_of_plain_batches(bases, data, tmp_path):
    """One batch of everything has no order: padded, by tokens and packed must agree.

    test_parity.py has the same of CLIP's tower.
    """
    ways = {
        "plain": {"per_device_train_batch_size": len(KINDS)},
        "tokens": {"batch_tokens": ALL},
        "packed": {"batch_tokens": ALL, "pack": True, "model_max_length": 400, "gradient_checkpointing": True},
    }
    for name, changes in ways.items():
        settings = {"num_train_epochs": 2, "tune_mm_mlp_adapter": True, **QLIP, **changes}
        train_on(bases / "llava", data, tmp_path / name, **settings)
    plain = logged(tmp_path / "plain")
    assert len(plain) == 2 and plain[0] > plain[1]
    for name in list(ways)[1:]:
        assert logged(tmp_path / name) == pytest.approx(plain, abs=2e-5)
        assert logged(tmp_path / name, "target_tokens") == logged(tmp_path / "plain", "target_tokens")
    padding = [logged(tmp_path / name, "padding_share")[0] for name in ("plain", "packed")]
    assert padding[1] < padding[0] / 2


def test_a_resumed_run_has_the_batches_of_an_uninterrupted_one(bases, data, tmp_path):
    settings = {"batch_tokens": 400, "pack": True, "num_train_epochs": 2, "gradient_accumulation_steps": 2}
    settings |= {"tune_mm_mlp_adapter": True, "model_max_length": 400, "save_strategy": "steps", "save_steps": 1}
    train_on(bases / "llava", data, tmp_path / "whole", **settings)
    whole = logged(tmp_path / "whole")
    assert len(whole) == 4  # two steps an epoch, so that the first checkpoint is within an epoch
    (tmp_path / "part").mkdir()
    (tmp_path / "whole" / "checkpoint-1").rename(tmp_path / "part" / "checkpoint-1")
    train_on(bases / "llava", data, tmp_path / "part", **settings)
    assert logged(tmp_path / "part") == pytest.approx(whole, abs=1e-6)
    assert (tmp_path / "part" / LENGTHS_FILE).is_file()
