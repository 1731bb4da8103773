"""Arguments of transformers' from_pretrained go through load_pretrained_model; others are refused before any work."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from llava.model import LlavaLlamaForCausalLM
from llava.model.builder import FROM_PRETRAINED, load_pretrained_model
from tests.llava.checkpoints import logits, make_llava_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_llava_checkpoint(tmp_path_factory.mktemp("llava")))


@pytest.mark.parametrize("name", sorted(FROM_PRETRAINED))
def test_each_argument_is_one_that_transformers_reads(name: str) -> None:
    assert (
        f'"{name}"' in inspect.getsource(PreTrainedModel.from_pretrained)
        or name in inspect.signature(PreTrainedModel.from_pretrained).parameters
    )


def test_arguments_reach_transformers_as_they_are(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "max_memory": {"cpu": "2GiB"},
        "offload_folder": str(tmp_path),
        "trust_remote_code": True,
        "use_safetensors": True,
        "low_cpu_mem_usage": True,
    }
    reached: dict[str, Any] = {}
    own = PreTrainedModel.from_pretrained.__func__

    def spy(cls: type, *args: Any, **kwargs: Any) -> Any:
        reached.update(kwargs)
        return own(cls, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(spy))
    model = load_pretrained_model(folder, device="cpu", **given)[1]
    assert isinstance(model, LlavaLlamaForCausalLM)
    assert {name: reached[name] for name in given} == given


def test_a_quantisation_of_ones_own_is_used(folder: str) -> None:
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["vision_tower", "mm_projector", "lm_head"])
    model = load_pretrained_model(folder, device="cpu", torch_dtype=torch.float16, quantization_config=config)[1]
    kinds = {type(module).__name__ for name, module in model.named_modules() if name.endswith("_proj")}
    assert "Linear8bitLt" in kinds
    with pytest.raises(ValueError, match="quantization_config is set beside load_8bit or load_4bit"):
        load_pretrained_model(folder, device="cpu", load_4bit=True, quantization_config=config)


@pytest.mark.parametrize("name", ["multimodal", "weights_only", "subfolder"])
def test_an_unknown_argument_is_a_type_error_before_the_checkpoint_is_looked_for(name: str) -> None:
    """lmms-eval tries `multimodal=True` first, and goes without it on a TypeError."""
    with pytest.raises(TypeError, match=f"got an unexpected keyword argument '{name}'"):
        load_pretrained_model("nowhere", None, "llava", device_map="auto", **{name: True})


def test_a_file_format_that_is_not_there_is_an_error(folder: str) -> None:
    with pytest.raises(OSError, match="pytorch_model"):
        load_pretrained_model(folder, device="cpu", use_safetensors=False)


def test_a_tower_left_on_disk_is_refused_as_it_loads(folder: str, tmp_path: Path) -> None:
    """Its weights are also read outside of the modules that fetch them; the language model's may be on disk."""
    names = ("vision_tower", "mm_projector", "embed_tokens", "layers", "norm", "rotary_emb")
    parts = {**{f"model.{name}": "cpu" for name in names}, "lm_head": "cpu", "model.layers": "disk"}
    expected = logits(load_pretrained_model(folder, device_map="cpu", torch_dtype=torch.float32)[1])
    model = load_pretrained_model(folder, device_map=parts, torch_dtype=torch.float32, offload_folder=str(tmp_path))[1]
    assert model.get_model().layers[0].self_attn.q_proj.weight.is_meta
    torch.testing.assert_close(logits(model), expected)
    for placement in ({"": "disk"}, {**parts, "model.vision_tower": "disk"}):
        with pytest.raises(ValueError, match="the vision tower is offloaded; give it a device in device_map"):
            load_pretrained_model(folder, device_map=placement, offload_folder=str(tmp_path))
