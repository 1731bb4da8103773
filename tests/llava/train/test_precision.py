"""Trained weights begin with the values of their files, and a frozen projector is saved as it was.

With a learning rate of 0 nothing changes. The dtype of the products is bfloat16, whose 8 bits would round all of them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llava.model.loading.files import load_tensors
from tests.llava.checkpoints import llava_state, projector_state, transformers_model
from tests.llava.train.handwritten import write_data
from tests.llava.train.runs import train_on

STILL = {"bf16": True, "learning_rate": 0, "max_steps": 1}
LORA = {"lora_enable": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, "it")
    return folder


def train_from(base: str, bases: Path, data: Path, out: Path, **flags: Any) -> None:
    """Trains from a LLaVA checkpoint, or from its parts."""
    if base == "parts":
        given = {"vision_tower": bases / "clip", "pretrain_mm_mlp_adapter": bases / "mm_projector.bin"}
        flags |= {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, **given}
    train_on(bases / ("vicuna" if base == "parts" else base), data, out, **STILL, **flags)


def read(file: Path) -> dict[str, Tensor]:
    return {name.replace("base_model.model.", ""): tensor for name, tensor in load_tensors(file).items()}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor], *parts: str) -> None:
    """Compares the tensors whose names hold one of some parts."""
    compared = {name for name in wanted if any(part in name for part in parts)}
    assert compared
    for name in compared:
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], wanted[name]), name
        assert not torch.equal(found[name], found[name].bfloat16().float()) or found[name].ndim == 1


@pytest.mark.parametrize(
    ("base", "flags", "file"),
    [
        ("llava", {"tune_mm_mlp_adapter": True}, "mm_projector.bin"),
        ("parts", {**LORA, "freeze_mm_mlp_adapter": True}, "non_lora_trainables.bin"),
        ("llava", {**LORA, "bits": 4}, "non_lora_trainables.bin"),
        ("parts", {**LORA, "bits": 4}, "non_lora_trainables.bin"),
    ],
    ids=str,
)
def test_the_projector_is_written_as_it_was_read(bases, data, tmp_path, base, flags: dict[str, Any], file: str) -> None:
    """The next test has a projector that is trained beside adapters."""
    train_from(base, bases, data, tmp_path, **flags)
    assert_equal(read(tmp_path / file), projector_state(transformers_model()), "mm_projector")


@pytest.mark.parametrize("base", ["llava", "parts"])
def test_an_unfrozen_tower_begins_with_its_files_values(bases, data, tmp_path, base) -> None:
    train_from(base, bases, data, tmp_path, **LORA, unfreeze_mm_vision_tower=True)
    found = read(tmp_path / "non_lora_trainables.bin")
    wanted = {name: tensor for name, tensor in llava_state(transformers_model()).items() if name in found}
    assert_equal(found, wanted, "vision_tower", "mm_projector")


def test_the_output_layer_above_a_frozen_trunk(bases, data, tmp_path) -> None:
    train_on(bases / "llava", data, tmp_path, **STILL, freeze_backbone=True, save_strategy="steps", save_steps=1)
    found = load_tensors(tmp_path / "checkpoint-1" / "model.safetensors")
    assert_equal(found, llava_state(transformers_model()), "lm_head", "mm_projector")
    assert found["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16  # no float32 copy of what is frozen


@pytest.mark.parametrize("by_flag", [True, False])
def test_the_embeddings_of_image_marks(bases, data, tmp_path, by_flag: bool) -> None:
    """They are asked for by the flag, or by the checkpoint that is trained further."""
    base = shutil.copytree(bases / "llava", tmp_path / "base")
    values = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(values | {"mm_use_im_start_end": not by_flag}))
    marks = {"mm_use_im_start_end": True} if by_flag else {}
    train_on(base, data, tmp_path / "out", **STILL, **marks, tune_mm_mlp_adapter=True)
    found = load_tensors(tmp_path / "out" / "mm_projector.bin")["model.embed_tokens.weight"]
    wanted = llava_state(transformers_model())["model.embed_tokens.weight"]
    assert found.dtype == torch.float32 and torch.equal(found[:360], wanted[:360])
