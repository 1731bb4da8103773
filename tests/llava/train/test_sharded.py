"""FSDP: a whole model is written whatever checkpoints hold, and a run that it would not shard is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from transformers import Trainer

from llava.train.checkpointed_trainer import CheckpointedTrainer


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
