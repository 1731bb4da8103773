"""Samples that are left out are named once, in training and in its evaluation; too many bad ones end a run."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor
from transformers import TrainerControl, TrainerState

from llava.train import left_out
from llava.train.checkpointed_trainer import StopAtBadSamples
from llava.train.left_out import LeftOutCounts, LeftOutLog, LeftOutSamples, Skipped
from llava.train.throughput import BatchCounts, Throughput
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


def test_more_bad_samples_than_allowed_are_an_error() -> None:
    left_out = LeftOutSamples(max_bad_samples=3)
    for number in range(4):
        left_out.check_bad()
        left_out.add(Skipped(f"x.json: sample {number}: broken", True))
    with pytest.raises(ValueError) as error:
        left_out.check_bad()
    for part in ("4 samples", "--max_bad_samples allows 3", "x.json: sample 0: broken", "sample 2", "; ..."):
        assert part in str(error.value)


def test_bad_samples_of_all_processes_count_together_and_once() -> None:
    left_out = LeftOutSamples(max_bad_samples=1)
    left_out.add(Skipped("a", True))
    assert left_out.exceeds(1 + 1) and left_out.waiting_bad == 1  # as two processes that have met the same
    for counts in (left_out.take(), LeftOutCounts(1, {"a": None})):
        left_out.merge(counts)
    assert not left_out.exceeds() and left_out.waiting_bad == 0
    left_out.merge(LeftOutCounts(1, {"b": None}))
    with pytest.raises(ValueError, match="2 samples cannot be used, and --max_bad_samples allows 1: a; b"):
        left_out.check_bad()


class TwoProcesses:
    """What `StopAtBadSamples` asks of a trainer: process 0 of two that allow one bad sample, and count additions.

    The other process has the bad samples `other`, which it gives away when the counts are merged.
    """

    def __init__(self, *other: str) -> None:
        self.args = SimpleNamespace(world_size=2, device="cpu")
        self.accelerator, self.additions = self, 0
        self.other = dict.fromkeys(other)
        self.throughput = Throughput(max_bad_samples=1, gather=self.gather)

    def reduce(self, own: Tensor, kind: str) -> Tensor:
        assert kind == "sum"
        self.additions += 1
        return own + len(self.other)

    def gather(self, mine: Any) -> list[Any]:
        other, self.other = LeftOutCounts(len(self.other), self.other), {}
        return [mine, (BatchCounts(target_tokens=1), other, None)]

    def train(self, steps: int, logs: Collection[int] = (), saves: Collection[int] = ()) -> int:
        """Calls what transformers calls after each step; returns the last step."""
        callback, control = StopAtBadSamples(self), TrainerControl()
        for step in range(1, steps + 1):
            control.should_save = step in saves
            state = TrainerState(global_step=step, max_steps=steps)
            callback.on_step_end(self.args, state, control)
            if step in logs:
                self.throughput.report()
                callback.on_log(self.args, state, control)
            if control.should_training_stop:
                assert control.should_save
                break
        return step


def test_several_processes_add_up_every_tenth_step_before_a_checkpoint_and_after_the_last() -> None:
    processes = TwoProcesses("a")  # which is allowed
    assert processes.train(25, saves=[3]) == 25
    assert processes.additions == len([3, 10, 20, 25])


@pytest.mark.parametrize(
    ("chosen", "step", "additions"),
    [({}, 10, 1), ({"saves": [7]}, 7, 1), ({"logs": [4, 8]}, 4, 0), ({"logs": range(1, 26)}, 1, 0)],
    ids=str,
)
def test_all_processes_stop_where_they_have_added_up_too_many(chosen, step: int, additions: int) -> None:
    processes = TwoProcesses("a", "b")
    assert (processes.train(25, **chosen), processes.additions) == (step, additions)


def test_a_sample_that_two_processes_have_met_counts_once() -> None:
    processes = TwoProcesses("a")
    processes.throughput.left_out.add(Skipped("a", True))
    assert processes.train(12) == 12


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Ten samples with an image, of which those of the numbers 5, 6 and 7 cannot be read."""
    write_data(tmp_path / "data", "i" * 10)
    for number in (5, 6, 7):
        file = tmp_path / "data" / f"{number}.png"
        file.rename(file.with_suffix(".whole"))
        file.write_text("no image")
    return tmp_path / "data"


RUN = {"tune_mm_mlp_adapter": True, "per_device_train_batch_size": 2, "max_bad_samples": 2}


def test_a_run_that_too_many_bad_samples_end_is_continued(bases, broken: Path, tmp_path: Path) -> None:
    """The third is met in step 4 of 5, which is done without it, as the steps before were without the others."""
    train_on(bases / "llava", broken, tmp_path / "whole", **{**RUN, "max_bad_samples": 3})
    saved = tmp_path / "out" / "checkpoint-4"
    for _ in range(2):
        with pytest.raises(ValueError) as error:
            train_on(bases / "llava", broken, tmp_path / "out", **RUN)
        assert "3 samples cannot be used, and --max_bad_samples allows 2: " in str(error.value)
        assert str(error.value).endswith(f"; the same command then continues from {saved}")
        assert [file.name for file in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-4"]
    shutil.copytree(tmp_path / "out", tmp_path / "allowed")
    train_on(bases / "llava", broken, tmp_path / "allowed", **{**RUN, "max_bad_samples": 3})
    (broken / "6.whole").replace(broken / "6.png")
    train_on(bases / "llava", broken, tmp_path / "out", **RUN)
    for out in (tmp_path / "allowed", tmp_path / "out"):
        assert logged(out) == pytest.approx(logged(tmp_path / "whole"), abs=1e-6)
        assert logged(out, "dropped_samples")[-1] == 3


def test_without_a_checkpoint_to_continue_samples_may_be_removed(bases, broken: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allows 2: .* Correct or remove them, or raise --max_bad_samples$"):
        train_on(bases / "llava", broken, tmp_path / "out", **RUN, save_only_model=True)
