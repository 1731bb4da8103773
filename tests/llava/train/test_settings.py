"""A run continues only a run of the same settings; what is refused is named by its flag before anything is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from llava.train import run
from llava.train.train import train
from qlip.mlp import CoordinateMLP
from tests.llava.checkpoints import VISION
from tests.llava.train.handwritten import write_data
from tests.llava.train.runs import code_and_error, flags, logged, train_on

RUN = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "per_device_train_batch_size": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, "itit")
    return folder


@pytest.fixture(scope="module")
def done(bases, data, tmp_path_factory) -> Path:
    """A run of the whole model, of one step."""
    out = tmp_path_factory.mktemp("done")
    train_on(bases / "llava", data, out, **RUN)
    return out


def copy_base(base: Path, to: Path, factor: float) -> Path:
    shutil.copytree(base, to)
    weights = load_file(to / "model.safetensors")
    save_file({name: factor * tensor for name, tensor in weights.items()}, to / "model.safetensors", {"format": "pt"})
    return to


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"learning_rate": 1e-5}, "--learning_rate is 1e-05, but {} was trained with 0.001"),
    ({"mm_projector_lr": 1e-5}, "--mm_projector_lr is 1e-05, but {} was trained with None"),
    ({"weight_decay": 0.1}, "--weight_decay is 0.1, but {} was trained with 0.0"),
    ({"optim": "sgd"}, "--optim is sgd, but {} was trained with adamw_torch"),
    ({"adafactor": True}, "--optim is adafactor, but"),
    ({"lr_scheduler_type": "cosine"}, "--lr_scheduler_type is cosine, but {} was trained with constant"),
    ({"warmup_ratio": 0.5}, "--warmup_steps is 0.5, but"),
    ({"version": "llava_llama_2"}, "--version is llava_llama_2, but {} was trained with "),
    ({"image_aspect_ratio": "pad"}, "--image_aspect_ratio is pad, but {} was trained with square"),
    ({"model_max_length": 256}, "--model_max_length is 256, but {} was trained with 512"),
    ({"mm_vision_select_layer": -1}, "--mm_vision_select_layer is -1, but {} was trained with -2"),
    ({"mm_use_im_start_end": True}, "--mm_use_im_start_end is True, but"),
    ({"qlip": True}, "--qlip is True, but {} was trained with False"),
    ({"freeze_backbone": True}, "--freeze_backbone is True, but"),
    ({"freeze_mm_mlp_adapter": True}, "--freeze_mm_mlp_adapter is True, but"),
    ({"unfreeze_mm_vision_tower": True}, "--unfreeze_mm_vision_tower is True, but"),
]


@pytest.mark.parametrize(("changes", "words"), CHANGES, ids=lambda value: next(iter(value)) if value else None)
def test_a_changed_setting_is_refused_by_its_flag(bases, data, done, monkeypatch, capsys, changes, words) -> None:
    monkeypatch.setattr(run, "assemble", None)  # nothing is loaded
    code, line = code_and_error(flags(bases / "llava", data, done, **{**RUN, "max_steps": 2, **changes}), capsys)
    assert code == 2 and words.format(done / "checkpoint-1") in line
    assert "a resumed run cannot change it. Give that value, or another --output_dir to start over. A new run" in line


def test_another_base_of_the_same_shapes_is_refused(bases, data, done, tmp_path, capsys) -> None:
    other = copy_base(bases / "llava", tmp_path / "other", 0.5)
    code, line = code_and_error(flags(other, data, done, **{**RUN, "max_steps": 2}), capsys)
    assert code == 2 and f"--model_name_or_path names other weights than {done / 'checkpoint-1'} was" in line
    assert "Name the same weights, at any path, or another --output_dir" in line


def test_a_tower_of_its_own_is_compared_too(bases, data, tmp_path, capsys) -> None:
    chosen = {**RUN, "vision_tower": bases / "clip", "tune_mm_mlp_adapter": True, "mm_vision_select_layer": -2}
    train_on(bases / "vicuna", data, tmp_path / "out", **chosen)
    chosen["vision_tower"] = copy_base(bases / "clip", tmp_path / "clip", 0.5)
    code, line = code_and_error(flags(bases / "vicuna", data, tmp_path / "out", **{**chosen, "max_steps": 2}), capsys)
    assert code == 2 and f"--vision_tower names other weights than {tmp_path / 'out' / 'checkpoint-1'} was" in line


@pytest.fixture
def hub(bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache as a download of `bases / "clip"`, as owner/clip, leaves it; nothing else can be downloaded."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--owner--clip"
    shutil.copytree(bases / "clip", repository / "snapshots" / "1a2b")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1a2b")
    return tmp_path / "hub"


def test_a_tower_of_the_hub_is_the_same_in_a_folder(bases, data, tmp_path, hub, capsys) -> None:
    chosen = {**RUN, "tune_mm_mlp_adapter": True, "mm_vision_select_layer": -2, "cache_dir": hub}
    train_on(bases / "vicuna", data, tmp_path / "out", **chosen, vision_tower="owner/clip")
    chosen["max_steps"] = 2
    other = copy_base(bases / "clip", tmp_path / "other", 0.5)
    code, line = code_and_error(flags(bases / "vicuna", data, tmp_path / "out", **chosen, vision_tower=other), capsys)
    assert code == 2 and "--vision_tower names other weights than" in line
    cloned = shutil.copytree(bases / "clip", tmp_path / "cloned")
    (cloned / "pytorch_model.bin").write_bytes(b"the same weights in a format that is not read")
    train_on(bases / "vicuna", data, tmp_path / "out", **chosen, vision_tower=cloned)
    assert len(logged(tmp_path / "out")) == 2


def test_a_prior_is_compared_by_its_weights_wherever_it_is(bases, data, tmp_path, capsys) -> None:
    def choose(seed: int, name: str, **changes: Any) -> list[str]:
        torch.manual_seed(seed)
        CoordinateMLP(VISION["hidden_size"], hidden=8, depth=1).save(tmp_path / name)
        chosen = {**RUN, "tune_mm_mlp_adapter": True, "qlip.interpolation": "mlp", "qlip.mlp": tmp_path / name}
        return flags(bases / "llava", data, tmp_path / "out", **{**chosen, **changes})

    train(argv=choose(0, "first.safetensors"))
    code, line = code_and_error(choose(1, "other.safetensors", max_steps=2), capsys)
    assert code == 2 and "--qlip.mlp names other weights than" in line
    train(argv=choose(0, "moved.safetensors", max_steps=2))
    assert len(logged(tmp_path / "out")) == 2


def test_a_prior_that_is_not_read_is_not_compared(bases, data, tmp_path) -> None:
    chosen = {**RUN, "tune_mm_mlp_adapter": True}
    train_on(bases / "llava", data, tmp_path, **chosen, qlip=True)
    train_on(bases / "llava", data, tmp_path, **{**chosen, "max_steps": 2, "qlip.mlp": "/nowhere"})
    assert len(logged(tmp_path)) == 2


def test_a_setting_of_the_quadtree_is_named_alone(bases, data, tmp_path, capsys) -> None:
    chosen = {**RUN, "tune_mm_mlp_adapter": True, "qlip": True, "qlip.alpha": 0.5}
    train_on(bases / "llava", data, tmp_path, **chosen)
    again = {**chosen, "max_steps": 2, "qlip.alpha": 0.75}
    code, line = code_and_error(flags(bases / "llava", data, tmp_path, **again), capsys)
    assert code == 2 and "--qlip.alpha is 0.75, but" in line and "was trained with 0.5, and" in line


SAME = {
    "mm_vision_select_layer": -2,  # as the checkpoint's own configuration says, and the next
    "mm_projector_type": "mlp2x_gelu",
    "version": "vicuna_v1",  # another name of v1's template
    "max_grad_norm": 0.5,
    "max_bad_samples": 3,
    "logging_steps": 2,
    "bf16": True,
}


def test_what_means_the_same_or_acts_on_each_step_alone_continues(bases, data, done, tmp_path) -> None:
    shutil.copytree(done, tmp_path / "out")
    base = shutil.copytree(bases / "llava", tmp_path / "moved")  # the same weights elsewhere
    trainer = train_on(base, data, tmp_path / "out", **{**RUN, "max_steps": 2, **SAME})
    assert trainer.state.global_step == 2


def test_a_checkpoint_of_before_settings_were_saved_continues(bases, data, done, tmp_path) -> None:
    shutil.copytree(done, tmp_path / "out")
    file = tmp_path / "out" / "checkpoint-1" / "throughput.json"
    totals = json.loads(file.read_text())
    del totals["settings"]
    file.write_text(json.dumps(totals))
    train_on(bases / "llava", data, tmp_path / "out", **{**RUN, "max_steps": 2, "weight_decay": 0.1})
    assert len(logged(tmp_path / "out")) == 2
