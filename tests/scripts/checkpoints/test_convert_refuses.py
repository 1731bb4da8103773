"""What scripts.convert_checkpoint can't convert is refused with the reason, and nothing half written stays."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from qlip import CoordinateMLP
from scripts.checkpoints.formats import convert
from tests.llava.checkpoints import VISION, make_llava_checkpoint, transformers_model, write_tokenizer


def test_a_text_only_model_is_refused(tmp_path):
    LlamaForCausalLM(transformers_model().config.text_config).save_pretrained(tmp_path / "llama")
    write_tokenizer(tmp_path / "llama")
    with pytest.raises(ValueError, match="llama has no vision tower, so it is not a LLaVA checkpoint"):
        convert(str(tmp_path / "llama"), tmp_path / "out")


def test_incomplete_checkpoints_are_refused(tmp_path):
    source = make_llava_checkpoint(tmp_path / "source")
    state = load_file(source / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights, for example 'model\.norm\.weight'"):
        convert(str(source), tmp_path / "out")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "mm_projector_type": "linear"}))
    with pytest.raises(ValueError, match="mm_projector_type is 'linear'"):
        convert(str(source), tmp_path / "out")
    (source / "model.safetensors").unlink()
    torch.save({}, source / "mm_projector.bin")
    with pytest.raises(ValueError, match="is a projector checkpoint: give its language model as --model-base"):
        convert(str(source), tmp_path / "out")


@pytest.mark.parametrize("stored", ["llava", "transformers"])
def test_quantised_weights_are_refused(tmp_path, stored):
    source = make_llava_checkpoint(tmp_path / "source")
    if stored == "transformers":
        convert(str(source), tmp_path / "there")
        source = tmp_path / "there"
    config = json.loads((source / "config.json").read_text()) | {"quantization_config": {"load_in_8bit": True}}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="quantised \\(quantization_config"):
        convert(str(source), tmp_path / "out")


def test_a_weight_of_another_shape_is_refused(tmp_path):
    source = make_llava_checkpoint(tmp_path / "source")
    state = load_file(source / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    state[name] = state[name][1:].contiguous()
    save_file(state, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"up_proj\.weight has the shape .*; config\.json asks for"):
        convert(str(source), tmp_path / "out")


def test_a_base_that_a_whole_checkpoint_does_not_need_is_refused(tmp_path):
    source = make_llava_checkpoint(tmp_path / "source")
    with pytest.raises(ValueError, match="has all weights: there is nothing to merge with --model-base base"):
        convert(str(source), tmp_path / "out", "base")


def test_a_prior_outside_of_the_checkpoint_is_refused(tmp_path):
    CoordinateMLP(VISION["hidden_size"], hidden=8).save(tmp_path / "a.safetensors")
    settings = {"interpolation": "mlp", "mlp": "../a.safetensors"}
    source = make_llava_checkpoint(tmp_path / "source", qlip=settings)
    with pytest.raises(ValueError, match="the MLP prior ../a.safetensors is outside of .*source; copy it there"):
        convert(str(source), tmp_path / "out")


def test_an_unknown_prompt_format_is_refused_before_anything_is_written(tmp_path):
    source = make_llava_checkpoint(tmp_path / "source", conv_mode="no_such")
    with pytest.raises(ValueError, match="conv_mode is 'no_such'; allowed are .*vicuna_v1"):
        convert(str(source), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("exists", [False, True], ids=["absent", "empty"])
def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, exists):
    source, out = make_llava_checkpoint(tmp_path / "source"), tmp_path / "deep" / "out"
    if exists:
        out.mkdir(parents=True)

    def full(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space left"):
        patched.setattr("scripts.checkpoints.formats.copy_prior", full)  # the last step
        convert(str(source), out)
    assert [*out.parent.iterdir()] == ([out] if exists else [])
    assert not exists or not [*out.iterdir()]
    assert convert(str(source), out) == "transformers"
    assert {"config.json", "model.safetensors", "original"} <= {file.name for file in out.iterdir()}
    assert not [*out.parent.rglob(".partial-*")]
