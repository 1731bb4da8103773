"""Training on a GPU: in bfloat16 the losses are those of float32 to its rounding, and what is trained moves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llava.model.builder import load_pretrained_model
from tests.llava.train.handwritten import write_data
from tests.llava.train.runs import logged, train_on


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, "iitiittit")
    return folder


@pytest.mark.parametrize("quadtree", [False, True], ids=["clip", "qlip"])
def test_steps_in_bfloat16_have_the_losses_of_float32(folder, device, data, tmp_path, quadtree):
    chosen = {"use_cpu": True if device == "cpu" else None, **({"qlip": True} if quadtree else {})}
    train_on(folder, data, tmp_path / "float32", **chosen)
    trainer = train_on(folder, data, tmp_path / "bfloat16", bf16=True, **chosen)
    assert trainer.model.device.type == device
    expected, found = logged(tmp_path / "float32"), logged(tmp_path / "bfloat16")
    assert len(found) == 3
    assert found == pytest.approx(expected, rel=0.05)
    assert all(0 < norm < float("inf") for norm in logged(tmp_path / "bfloat16", "grad_norm"))
    before = load_pretrained_model(str(folder), device="cpu", qlip=quadtree)[1].state_dict()
    moved = set()
    for name, weight in trainer.model.state_dict().items():
        start = before[name].to(weight.dtype)  # the frozen tower is held in bfloat16
        if not torch.equal(weight.cpu(), start):
            moved.add(name)
    assert any("mm_projector" in name for name in moved) and any(".layers.1." in name for name in moved)
    assert not any("vision_tower" in name for name in moved)
