"""Samples that are left out are named once, in training and in its evaluation."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from llava.train import left_out
from llava.train.left_out import LeftOutLog
from tests.llava.train.handwritten import write_data
from tests.llava.train.runs import logged, train_on


def test_each_is_named_once_and_after_some_they_are_only_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(left_out, "NAMED", 2)
    log = LeftOutLog("left out of the evaluation", "eval_dropped_samples")
    log.skip(["0"])
    for reason in ("0", "1", "1", "2", "3", "4"):
        log.add(reason)
    assert caplog.messages == [
        "left out of the evaluation: 1",
        "more samples are left out of the evaluation; eval_dropped_samples counts them",
    ]


def test_several_evaluations_name_a_sample_once(bases: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_data(tmp_path, "itt")
    samples = json.loads((tmp_path / "data.json").read_text())
    broken = next(sample for sample in samples if "image" in sample)
    (tmp_path / "held_out.json").write_text(json.dumps([{**broken, "image": "broken.png"}, *samples[1:]]))
    (tmp_path / "broken.png").write_text("no image")
    flags = {"eval_strategy": "epoch", "eval_data_path": tmp_path / "held_out.json", "num_train_epochs": 2}
    with caplog.at_level(logging.WARNING):
        train_on(bases / "llava", tmp_path, tmp_path / "out", tune_mm_mlp_adapter=True, **flags)
    assert logged(tmp_path / "out", "eval_dropped_samples") == [1, 1]
    assert sum("left out of the evaluation: " in message for message in caplog.messages) == 1
