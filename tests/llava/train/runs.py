"""Short runs of training, and what they log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llava.train.train import main, train
from tests.llava.checkpoints import write_tokenizer
from tests.llava.model.language_models import KINDS

DEFAULTS = {
    "version": "v1",
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "train_sampling_strategy": "sequential",
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "model_max_length": 512,
    "mm_use_im_patch_token": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}


def flags(model: Path, data: Path, out: Path, **changes: Any) -> list[str]:
    """The command line of a run over `data / "data.json"` in its order.

    `changes` replace or add flags; None removes one. Batches by tokens and by modality have an order of their own.
    """
    if {"pack", "batch_tokens", "group_by_modality_length"} & changes.keys():
        changes = {"train_sampling_strategy": None, **changes}
    chosen = {
        "model_name_or_path": model,
        "data_path": data / "data.json",
        "image_folder": data,
        "output_dir": out,
        **DEFAULTS,
        **changes,
    }
    return [part for name, value in chosen.items() if value is not None for part in (f"--{name}", str(value))]


def train_on(model: Path, data: Path, out: Path, **changes: Any) -> Any:
    """Trains; returns the trainer."""
    return train(argv=flags(model, data, out, **changes))


def logged(out: Path, name: str = "loss") -> list[float]:
    """What the log of a run says of `name`, step by step."""
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [line[name] for line in history if name in line]


def write_text_model(folder: Path, kind: str) -> Path:
    """A language model of another type, with random weights."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**KINDS[kind])).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def code_and_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The command's exit code, and its only line of an error."""
    code = main(arguments)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("llava-train: error: "))
    return code, line
