"""FSDP: a whole model is written whatever checkpoints hold, and a run that it would not shard is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from transformers import Trainer

from llava.train.checkpointed_trainer import CheckpointedTrainer
from llava.train.llava_trainer import LLaVATrainer
from tests.llava.train.handwritten import write_data
from tests.llava.train.runs import code_and_error, flags


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """accelerate's plugin sets variables, which are taken back after a test."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")


@pytest.mark.parametrize("kind", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_the_whole_model_is_written_at_the_end_where_checkpoints_are_of_shards(tmp_path, monkeypatch, kind):
    """transformers' trainer writes a model for FULL_STATE_DICT only; the shards of a checkpoint are accelerate's."""
    written: list[str] = []
    monkeypatch.setattr(Trainer, "_save", lambda self, folder, state_dict: written.append(folder))
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type=kind)
    model: Any = torch.nn.Linear(1, 1)
    model.config = SimpleNamespace(use_cache=False)
    trainer: Any = object.__new__(CheckpointedTrainer)
    trainer.model, trainer.is_fsdp_enabled, trainer.is_deepspeed_enabled = model, True, False
    trainer.args = SimpleNamespace(bf16=True, fp16=False, should_save=True, push_to_hub=False)
    trainer.accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        unwrap_model=lambda wrapped: wrapped,
        get_state_dict=lambda wrapped: wrapped.state_dict(),
    )
    trainer.save_model(str(tmp_path / "checkpoint"), _internal_call=True)
    trainer.save_model(str(tmp_path / "end"))
    trainer.save_model(str(tmp_path / "checkpoint"), _internal_call=True)
    checkpoints = [str(tmp_path / "checkpoint")] * (kind == "FULL_STATE_DICT")
    assert written == [*checkpoints, str(tmp_path / "end"), *checkpoints]


@pytest.mark.parametrize(("sharded", "groups"), [(True, [1, 1, 1]), (False, [1, 0, 1, 1])])
def test_no_group_of_a_sharded_optimizer_is_empty(monkeypatch, sharded, groups):
    """Checkpoints of shards lose its settings. Without FSDP it stays, since checkpoints that were written have it."""
    model = torch.nn.ModuleDict({"lora": torch.nn.Linear(1, 1, bias=False), "mm_projector": torch.nn.Linear(1, 1)})
    layer, projector = model["lora"], model["mm_projector"]
    optimizer = torch.optim.AdamW(
        [
            {"params": [layer.weight, projector.weight], "weight_decay": 0.1},
            {"params": [projector.bias], "weight_decay": 0.0},
        ]
    )
    monkeypatch.setattr(Trainer, "create_optimizer", lambda self, model: optimizer)
    trainer: Any = object.__new__(LLaVATrainer)
    trainer.model, trainer.is_fsdp_enabled, trainer.args = model, sharded, SimpleNamespace(mm_projector_lr=0.5)
    found = trainer.create_optimizer().param_groups
    assert [len(group["params"]) for group in found] == groups
    assert [(group["lr"], group["weight_decay"]) for group in found][-2:] == [(0.5, 0.1), (0.5, 0.0)]


def test_a_run_that_accelerate_would_not_shard_is_refused(bases, tmp_path, monkeypatch, capsys):
    """On CPUs, where it trains a copy of the model in each process, without a word."""
    write_data(tmp_path / "data", "it")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    code, line = code_and_error(flags(bases / "llava", tmp_path / "data", tmp_path / "out"), capsys)
    assert code == 2 and not list(tmp_path.glob("out/*"))
    for words in ("ACCELERATE_USE_FSDP", "would do nothing", "NO on cpu", "by torchrun", "ACCELERATE_USE_FSDP out"):
        assert words in line
