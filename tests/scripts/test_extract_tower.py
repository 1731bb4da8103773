"""A checkpoint's tower, written as a CLIP checkpoint of its own, is the same tower."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, CLIPVisionModel

from llava.model.builder import load_pretrained_model
from llava.utils import demo_model_path
from scripts.extract_tower import main
from tests.llava.checkpoints import (
    make_llava_checkpoint,
    projector_state,
    transformers_model,
    write_config,
    write_language_model,
)


@pytest.fixture(scope="module")
def oracle():
    return transformers_model()


@torch.no_grad()
def test_the_extracted_tower_is_the_checkpoints_own(tmp_path):
    assert main(["--out", str(tmp_path / "tower")]) == 0
    model = load_pretrained_model(demo_model_path(), device="cpu", qlip=False)[1]
    pixels = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    weights = load_file(tmp_path / "tower" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}  # the checkpoint's
    extracted = CLIPVisionModel.from_pretrained(tmp_path / "tower", dtype=torch.float32)
    own = model.get_vision_tower()(pixels)[0]
    torch.testing.assert_close(extracted(pixels, output_hidden_states=True).hidden_states[-2][0, 1:], own)
    assert AutoImageProcessor.from_pretrained(tmp_path / "tower").crop_size["height"] == 112


def test_a_checkpoint_is_not_written_over(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert main(["--model-path", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "is not empty; name another folder" in capsys.readouterr().err
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"config.json": "{}"}


def test_a_model_without_a_tower_is_refused(oracle, tmp_path, capsys):
    llama = write_language_model(tmp_path / "llama", oracle)
    assert main(["--model-path", str(llama), "--out", str(tmp_path / "out")]) == 2
    assert "llama has no vision tower, it is a language model alone" in capsys.readouterr().err


def test_the_tower_of_a_projectors_base_is_found(oracle, tmp_path):
    whole = make_llava_checkpoint(tmp_path / "whole")
    write_config(tmp_path / "projector")
    torch.save(projector_state(oracle), tmp_path / "projector" / "mm_projector.bin")
    flags = ["--model-path", str(tmp_path / "projector"), "--model-base", str(whole)]
    assert main([*flags, "--out", str(tmp_path / "tower")]) == 0
    weights = load_file(tmp_path / "tower" / "model.safetensors")
    own = oracle.model.vision_tower.state_dict()
    assert weights.keys() == own.keys() and all(torch.equal(own[name], tensor) for name, tensor in weights.items())
