"""A fork's own training code: LLaVA's pattern of arguments, data and trainer, from its import paths."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import transformers

from llava import conversation
from llava.model.builder import load_pretrained_model
from llava.train.llava_trainer import LLaVATrainer
from llava.train.train import make_supervised_data_module, safe_save_model_for_hf_trainer
from tests.llava.train.handwritten import Loop, write_data

SAMPLES = "itti"


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """The fields of LLaVA's own class, none of ours."""

    cache_dir: str | None = field(default=None)
    optim: str = field(default="adamw_torch")
    remove_unused_columns: bool = field(default=False)
    freeze_mm_mlp_adapter: bool = field(default=False)
    mpt_attn_impl: str | None = field(default="triton")
    model_max_length: int = field(default=512)
    double_quant: bool = field(default=True)
    quant_type: str = field(default="nf4")
    bits: int = field(default=16)
    lora_enable: bool = False
    lora_r: int = 64
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    lora_weight_path: str = ""
    lora_bias: str = "none"
    mm_projector_lr: float | None = None
    group_by_modality_length: bool = field(default=False)


@dataclass
class DataArguments:
    data_path: str
    image_folder: str
    lazy_preprocess: bool = True
    is_multimodal: bool = True
    image_aspect_ratio: str = "square"
    mm_use_im_start_end: bool = False
    image_processor: Any = None


def make_trainer(base: Path, folder: Path, out: Path, arguments: type = TrainingArguments, **settings: Any) -> Any:
    """A trainer as LLaVA's `train()` makes it, over samples in their order."""
    tokenizer, model, processor, _ = load_pretrained_model(base, device="cpu")
    tokenizer.model_max_length, tokenizer.padding_side = 512, "right"
    model.config.use_cache = False
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("vision_tower" not in name)
    data = DataArguments(str(folder / "data.json"), str(folder), image_processor=processor)
    chosen: dict[str, Any] = {"per_device_train_batch_size": 2, "num_train_epochs": 1, "learning_rate": 1e-3}
    chosen |= {"lr_scheduler_type": "constant", "train_sampling_strategy": "sequential", "logging_steps": 1}
    chosen |= {"save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    return LLaVATrainer(
        model=model,
        tokenizer=tokenizer,
        args=arguments(output_dir=str(out), **{**chosen, **settings}),
        **make_supervised_data_module(tokenizer=tokenizer, data_args=data),
    )


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "default_conversation", conversation.conv_templates["v1"])


@pytest.mark.usefixtures("template")
@pytest.mark.parametrize(
    ("arguments", "own"),
    [(TrainingArguments, {}), (transformers.TrainingArguments, {"remove_unused_columns": False})],
    ids=["LLaVA's fields", "transformers' alone"],
)
def test_the_losses_are_those_of_the_loop_by_hand(bases: Path, tmp_path: Path, arguments: type, own: dict) -> None:
    samples = write_data(tmp_path / "data", SAMPLES)
    save = {"save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(bases / "llava", tmp_path / "data", tmp_path / "out", arguments, **save, **own)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses == pytest.approx(Loop().losses(bases / "llava", tmp_path / "data", samples, 2), abs=1e-4)
    safe_save_model_for_hf_trainer(trainer=trainer, output_dir=str(tmp_path / "out"))
    assert {"model.safetensors", "checkpoint-1", "checkpoint-2"} <= {file.name for file in (tmp_path / "out").iterdir()}


@pytest.mark.usefixtures("template")
def test_llavas_own_fields_are_read(bases: Path, tmp_path: Path) -> None:
    samples = write_data(tmp_path / "data", SAMPLES)
    trainer = make_trainer(bases / "llava", tmp_path / "data", tmp_path / "out", mm_projector_lr=1e-2)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    wanted = Loop(projector_rate=1e-2).losses(bases / "llava", tmp_path / "data", samples, 2)
    assert losses == pytest.approx(wanted, abs=1e-4)


@pytest.mark.usefixtures("template")
def test_columns_that_transformers_would_remove_are_named(bases: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "data", SAMPLES)
    with pytest.raises(ValueError, match="remove_unused_columns is True, which .* it must be False"):
        make_trainer(bases / "llava", tmp_path / "data", tmp_path / "out", transformers.TrainingArguments)
