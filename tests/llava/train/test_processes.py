"""Two processes on CPUs give the losses of one with the same global batch, and resume to the same losses.

Of two processes process 0 saves the best checkpoint's weights at the end, if it is asked to.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.train.train import main, train
from tests.interpreter import fork_main
from tests.llava.checkpoints import make_llava_checkpoint
from tests.llava.serve.programs import free_port
from tests.llava.train.handwritten import write_data
from tests.llava.train.runs import flags, logged

KINDS = "iitt" + "ttit" + "tttt" + "titi"
"""Four steps of two samples per process: batches without images in one process, in the other, and in both."""

WORST_IS_BEST = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
"""Loads the first of two checkpoints at the end."""

NOT_EVALUATED = dict.fromkeys(("eval_strategy", "eval_steps", "eval_data_path", "eval_questions"))


def make_flags(folder: Path, out: Path, **changes: Any) -> list[str]:
    chosen = {
        "tune_mm_mlp_adapter": True,
        "per_device_train_batch_size": 2,
        "learning_rate": 2e-3,
        "lr_scheduler_type": "cosine",
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "eval_data_path": folder / "data" / "data.json",
        "eval_questions": folder / "questions.jsonl",
    }
    return flags(folder / "model", folder / "data", out, **{**chosen, **changes})


def write_questions(file: Path, images: list[str]) -> None:
    """A question about each of three images, so that one process has more of them."""
    images = images[:3]
    rows = [{"question_id": name, "image": name, "text": "what is it?", "answer": "a circle"} for name in images]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def launch(arguments: list[str], log: Path, code: int = 0) -> None:
    """Trains in two processes, told apart as torchrun tells its own (which the recipes' test runs).

    Both must exit with `code`.
    """
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    processes = [
        fork_main(main, *arguments, stderr=log, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)
    ]
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [code, code], log.read_text()[-3000:]


def test_two_processes_train_as_one_and_resume(tmp_path: Path) -> None:
    make_llava_checkpoint(tmp_path / "model")
    samples = write_data(tmp_path / "data", KINDS)
    write_questions(tmp_path / "questions.jsonl", [sample["image"] for sample in samples if "image" in sample])
    train(argv=make_flags(tmp_path, tmp_path / "one", per_device_train_batch_size=4))
    launch(make_flags(tmp_path, tmp_path / "two", **WORST_IS_BEST), tmp_path / "two.log")
    losses = logged(tmp_path / "two")
    assert losses == pytest.approx(logged(tmp_path / "one"), abs=1e-5)
    assert len(losses) == 4 and losses[0] != pytest.approx(losses[-1], abs=0.01)
    for name in ("target_tokens", "dropped_samples", "eval_exact_match"):  # of both processes together
        assert logged(tmp_path / "two", name) == logged(tmp_path / "one", name)
    assert logged(tmp_path / "two", "eval_loss") == pytest.approx(logged(tmp_path / "one", "eval_loss"), abs=1e-5)
    assert len(logged(tmp_path / "two", "eval_exact_match")) == len(logged(tmp_path / "two", "eval_loss")) == 2

    ends, second, fourth = (
        torch.load(tmp_path / "two" / name / "mm_projector.bin") for name in ("", "checkpoint-2", "checkpoint-4")
    )
    assert all(torch.equal(ends[name], second[name]) for name in ends)
    assert not all(torch.equal(ends[name], fourth[name]) for name in ends)

    stopped = tmp_path / "stopped"  # as a run that was killed after its first checkpoint leaves it
    shutil.copytree(tmp_path / "two" / "checkpoint-2", stopped / "checkpoint-2")
    launch(make_flags(tmp_path, stopped, **NOT_EVALUATED), tmp_path / "stopped.log")
    assert logged(stopped) == pytest.approx(losses, abs=1e-5)
    assert logged(stopped, "target_tokens") == logged(tmp_path / "two", "target_tokens")


def test_two_processes_stop_together_where_one_has_met_too_many_bad_samples(tmp_path: Path) -> None:
    """Both come to the checkpoint, which one that ended at once would leave the other to wait for."""
    make_llava_checkpoint(tmp_path / "model")
    write_data(tmp_path / "data", "i" * 12)
    (tmp_path / "data" / "6.png").write_text("no image")  # of process 1, in the second of three steps
    arguments = make_flags(tmp_path, tmp_path / "out", **NOT_EVALUATED, max_bad_samples=0, save_steps=100)
    launch(arguments, tmp_path / "log", code=2)
    assert "the same command then continues from" in (tmp_path / "log").read_text()
    assert (tmp_path / "out" / "checkpoint-2" / "mm_projector.bin").is_file()


def test_two_processes_stop_together_where_training_diverges(tmp_path: Path) -> None:
    make_llava_checkpoint(tmp_path / "model")
    write_data(tmp_path / "data", "i" * 12)
    arguments = make_flags(tmp_path, tmp_path / "out", **NOT_EVALUATED, learning_rate=1e37, save_steps=1)
    launch([*arguments, "--lr_scheduler_type", "constant"], tmp_path / "log", code=2)
    assert "error: training has diverged" in (tmp_path / "log").read_text()
    assert [folder.name for folder in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-1"]
