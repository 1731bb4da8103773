"""A run that is stopped at any step and started again logs the losses of an uninterrupted one."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from llava.train.saving import checkpoints, rotate
from llava.train.train import main
from tests.interpreter import fork_main
from tests.llava.checkpoints import write_shards
from tests.llava.train import runs
from tests.llava.train.handwritten import write_data
from tests.llava.train.runs import flags, logged, write_text_model

MODES = {
    "projector, by modality": {"tune_mm_mlp_adapter": True, "group_by_modality_length": True},
    "full, in bf16, by length": {"bf16": True, "train_sampling_strategy": "group_by_length"},
    "lora, accumulated": {
        "lora_enable": True,
        "lora_r": 4,
        "lora_dropout": 0.1,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
    },
    "tower, packed": {
        "unfreeze_mm_vision_tower": True,
        "qlip": True,
        "pack": True,
        "batch_tokens": 200,
        "train_sampling_strategy": "random",
    },
}
"""Each order of samples and each trained part once: the order does not depend on what is trained."""
STEPWISE = {"learning_rate": 2e-3, "lr_scheduler_type": "cosine", "warmup_ratio": 0.3, "weight_decay": 0.1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, "iititi")
    return folder


def train_on(model: Path, data: Path, out: Path, **changes: Any) -> Any:
    """Trains on two samples a step, so that an epoch has three."""
    return runs.train_on(model, data, out, **{"per_device_train_batch_size": 2, **changes})


@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(bases, data, tmp_path, mode):
    """From the middle of the second epoch, and in one mode from every checkpoint."""
    chosen = {**STEPWISE, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2, **MODES[mode]}
    train_on(bases / "llava", data, tmp_path / "whole", **chosen)
    losses = logged(tmp_path / "whole")
    found = checkpoints(tmp_path / "whole")
    assert len(found) == len(losses) // 2 >= 2
    for number, checkpoint in enumerate(found[:-1] if mode == "projector, by modality" else found[-2:-1]):
        out = tmp_path / f"again-{number}"
        shutil.copytree(checkpoint, out / checkpoint.name)
        train_on(bases / "llava", data, out, **chosen)
        assert logged(out) == pytest.approx(losses, abs=1e-6)
        assert logged(out, "target_tokens") == logged(tmp_path / "whole", "target_tokens")


@pytest.mark.parametrize("kind", ["mpt", "qwen2"])
def test_the_language_model_is_restored_under_its_files_names(bases, data, tmp_path, kind):
    """MPT's files call the trunk "transformer"; with steps this large a trunk that is not restored shows."""
    base = write_text_model(tmp_path / kind, kind)
    more = {"version": "mpt"} if kind == "mpt" else {}
    chosen = {"vision_tower": bases / "clip", **more, "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 2}
    train_on(base, data, tmp_path / "whole", **chosen)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    train_on(base, data, tmp_path / "again", **chosen)
    assert logged(tmp_path / "again") == pytest.approx(logged(tmp_path / "whole"), abs=1e-5)


def test_a_checkpoint_in_shards_is_resumed(bases, data, tmp_path):
    chosen = {"save_strategy": "steps", "save_steps": 2}
    train_on(bases / "llava", data, tmp_path / "whole", **chosen)
    folder = tmp_path / "again" / "checkpoint-2"
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write_shards(folder, state, ".safetensors")
    train_on(bases / "llava", data, tmp_path / "again", **chosen)
    assert logged(tmp_path / "again") == pytest.approx(logged(tmp_path / "whole"), abs=1e-6)


def test_a_checkpoint_without_some_weights_is_not_trained_on(bases, data, tmp_path):
    train_on(bases / "llava", data, tmp_path / "o", save_strategy="steps", save_steps=2)
    file = checkpoints(tmp_path / "o")[-1] / "model.safetensors"
    state = load_file(file)
    del state["model.norm.weight"]
    save_file(state, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"the checkpoint lacks 1 weights, for example 'model\.norm\.weight'"):
        train_on(bases / "llava", data, tmp_path / "o", save_strategy="steps", save_steps=2, num_train_epochs=2)


def test_a_run_that_is_killed_while_it_saves_continues_from_the_last_whole_checkpoint(
    bases, data, tmp_path, monkeypatch
):
    whole = transformers.Trainer._save_rng_state

    def cut(self, folder):
        if self.state.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(self, folder)

    chosen = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, "per_device_train_batch_size": 1}
    arguments = flags(bases / "llava", data, tmp_path / "killed", **chosen)
    with monkeypatch.context() as patch:
        patch.setattr(transformers.Trainer, "_save_rng_state", cut)
        run = fork_main(main, *arguments, stderr=tmp_path / "log")
        run.join(300)
    assert run.exitcode == -signal.SIGKILL, (tmp_path / "log").read_text()[-2000:]
    assert [folder.name for folder in checkpoints(tmp_path / "killed")] == ["checkpoint-2"]
    train_on(bases / "llava", data, tmp_path / "killed", **chosen)
    train_on(bases / "llava", data, tmp_path / "whole", **chosen)
    assert logged(tmp_path / "killed") == pytest.approx(logged(tmp_path / "whole"), abs=1e-6)
    assert [folder.name for folder in checkpoints(tmp_path / "killed")] == ["checkpoint-6"]
    assert not (tmp_path / "killed" / ".saving").exists()


def test_the_oldest_checkpoints_go_but_never_the_best_or_the_newest(tmp_path):
    for step in (2, 4, 10, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    os.utime(tmp_path / "checkpoint-20", (0, 0))  # age is the step's, not the file's
    rotate(tmp_path, 2, str(tmp_path / "checkpoint-2"))
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-10", "checkpoint-20"]
    rotate(tmp_path, None, None)
    rotate(tmp_path, 1, None)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-20"]


def test_the_best_checkpoint_is_loaded_at_the_end(bases, data, tmp_path, caplog):
    """In projector-only training, whose checkpoints transformers cannot read; here the highest loss counts as best."""
    chosen = {"tune_mm_mlp_adapter": True, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps"}
    chosen |= {"eval_steps": 1, "eval_data_path": data / "data.json", "load_best_model_at_end": True}
    trainer = train_on(bases / "llava", data, tmp_path, **chosen, metric_for_best_model="loss", greater_is_better=True)
    losses = logged(tmp_path, "eval_loss")
    assert losses[0] == max(losses) > losses[-1]
    assert Path(trainer.state.best_model_checkpoint) == tmp_path / "checkpoint-1"
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[0], abs=1e-6)
    assert trainer.throughput.state()["samples"] == 6  # of the whole run, not of its best checkpoint

    trainer.state.best_model_checkpoint = str(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="elsewhere/mm_projector.bin"):
        trainer._load_best_model()
    trainer.args = SimpleNamespace(should_save=False, tune_mm_mlp_adapter=True)  # as on a second machine
    trainer._load_best_model()
    assert "elsewhere is on another machine" in caplog.text


ENDS = {
    "max_steps beyond an epoch": ({"max_steps": 4}, 4),
    "a part of an epoch": ({"num_train_epochs": 1.5}, 5),
    "max_steps inside an epoch, packed": ({"max_steps": 2, "pack": True, "batch_tokens": 200}, 2),
}
"""The next test has a whole epoch."""


@pytest.mark.parametrize(("end", "steps"), ENDS.values(), ids=ENDS)
def test_a_run_that_is_done_says_that_it_trains_nothing(bases, data, tmp_path, caplog, end, steps):
    chosen = {"tune_mm_mlp_adapter": True, "save_strategy": "steps", "save_steps": steps, **end}
    train_on(bases / "llava", data, tmp_path, **chosen)
    assert "nothing was trained" not in caplog.text
    before = torch.load(tmp_path / "mm_projector.bin")
    train_on(bases / "llava", data, tmp_path, **chosen)
    assert f"checkpoint-{steps} has all {steps} steps already: nothing was trained; give another" in caplog.text
    assert [folder.name for folder in checkpoints(tmp_path)] == [f"checkpoint-{steps}"]
    after = torch.load(tmp_path / "mm_projector.bin")
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_run_that_ended_with_its_best_checkpoint_is_done_too(bases, data, tmp_path, caplog):
    """transformers would keep the best checkpoint alone, from which the command would go on when it is given again."""
    chosen = {"tune_mm_mlp_adapter": True, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps"}
    chosen |= {"eval_steps": 1, "eval_data_path": data / "data.json", "load_best_model_at_end": True}
    chosen |= {"metric_for_best_model": "loss", "greater_is_better": True, "save_total_limit": 1}
    for _ in range(2):
        train_on(bases / "llava", data, tmp_path, **chosen)
        assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-3"]
        final, best = (torch.load(folder / "mm_projector.bin") for folder in (tmp_path, tmp_path / "checkpoint-1"))
        assert all(torch.equal(final[name], best[name]) for name in best)
    assert "checkpoint-3 has all 3 steps already: nothing was trained" in caplog.text


def test_more_steps_continue_a_run_that_is_done(bases, data, tmp_path):
    chosen = {"tune_mm_mlp_adapter": True, "save_strategy": "steps", "save_steps": 1}
    train_on(bases / "llava", data, tmp_path, **chosen, max_steps=2)
    train_on(bases / "llava", data, tmp_path, **chosen, max_steps=3)
    assert len(logged(tmp_path)) == 3


def test_a_run_whose_steps_would_stand_for_other_samples_is_not_continued(bases, data, tmp_path):
    """test_plan.py has what else decides on them."""
    chosen = {"tune_mm_mlp_adapter": True, "save_strategy": "steps", "save_steps": 2}
    train_on(bases / "llava", data, tmp_path / "run", **chosen, max_steps=2)
    told = r"samples a step \(.*\): 2, and this run has 1, .* give the same, or another"
    with pytest.raises(ValueError, match=f"checkpoint-2 was trained with {told}"):
        train_on(bases / "llava", data, tmp_path / "run", **chosen, per_device_train_batch_size=1)


def test_a_smaller_batch_continues_a_run_if_it_is_accumulated_to_as_many_samples(bases, data, tmp_path):
    chosen = {"tune_mm_mlp_adapter": True, "save_strategy": "steps", "save_steps": 1}
    train_on(bases / "llava", data, tmp_path / "whole", **chosen)
    train_on(bases / "llava", data, tmp_path / "again", **chosen, max_steps=1)
    train_on(
        bases / "llava",
        data,
        tmp_path / "again",
        **chosen | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    )
    assert logged(tmp_path / "again") == pytest.approx(logged(tmp_path / "whole"), abs=1e-5)


def test_a_false_flag_never_continues_nor_overwrites_a_run(bases, data, tmp_path):
    chosen = {"tune_mm_mlp_adapter": True, "save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    train_on(bases / "llava", data, tmp_path, **chosen, resume_from_checkpoint=False)
    with pytest.raises(ValueError, match="is False, but .* has checkpoint-1, .* give another --output_dir"):
        train_on(tmp_path / "not loaded", data, tmp_path, **chosen, resume_from_checkpoint=False)
