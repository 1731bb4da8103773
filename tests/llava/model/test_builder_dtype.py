"""Every part of a loaded model has the requested dtype, whatever its files state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

from llava.model import LlavaLlamaForCausalLM
from llava.model.builder import load_pretrained_model
from tests.llava.checkpoints import (
    PICTURE,
    VISION,
    llava_state,
    logits,
    oracle_logits,
    transformers_model,
    write_config,
    write_tokenizer,
    write_tower,
)

OTHER = {torch.float32: torch.float16, torch.float16: torch.bfloat16, torch.bfloat16: torch.float32}
"""A dtype -> another one, which a file states against the caller's choice."""

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


@pytest.fixture(scope="module")
def eight_bit_logits(oracle, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """Logits of transformers' model with its language model in 8 bits."""
    folder = tmp_path_factory.mktemp("theirs")
    oracle.save_pretrained(folder)
    eight = BitsAndBytesConfig(
        load_in_8bit=True, llm_int8_skip_modules=["vision_tower", "multi_modal_projector", "lm_head"]
    )
    options = {"quantization_config": eight, "dtype": torch.float16, "device_map": "cpu"}
    return oracle_logits(LlavaForConditionalGeneration.from_pretrained(folder, **options))


def tower_inside(folder: Path, oracle, saved: torch.dtype, stated: str) -> None:
    """LLaVA's format with the tower's weights, and a tower's config that states a dtype."""
    write_config(folder, torch_dtype=name_of(saved), mm_vision_config={**VISION, "dtype": stated})
    weights = {name: tensor.to(saved) for name, tensor in llava_state(oracle).items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def tower_beside(folder: Path, oracle, saved: torch.dtype, stated: str) -> None:
    """LLaVA's format, with CLIP in a separate folder and of a different dtype."""
    write_config(folder, torch_dtype=name_of(saved), mm_vision_tower="clip")
    write_tower(folder / "clip", oracle, getattr(torch, stated))
    weights = {name: tensor.to(saved) for name, tensor in llava_state(oracle).items() if "vision_tower" not in name}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def transformers_format(folder: Path, oracle, saved: torch.dtype, stated: str) -> None:
    """llava-hf's format, whose config states a dtype for the vision part too."""
    transformers_model().to(saved).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["dtype"] = stated
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def assert_dtype(model, dtype: torch.dtype) -> None:
    for part in (model.get_vision_tower(), model.model.mm_projector, model.model.embed_tokens, model.lm_head):
        assert {parameter.dtype for parameter in part.parameters()} == {dtype}


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative, over all logits."""
    return ((ours.float() - theirs.float()).norm() / theirs.float().norm()).item()


FORMATS = [tower_inside, tower_beside, transformers_format]


@pytest.mark.parametrize(
    ("write", "asked"),
    [
        *((write, "auto") for write in FORMATS),
        (tower_inside, "float16"),
        (tower_beside, "float32"),
        (transformers_format, "bfloat16"),
    ],
)
def test_all_parts_have_the_requested_dtype(tmp_path, oracle, write, asked):
    """The checkpoint is saved in one dtype, its tower states another; logits are transformers' of the asked one."""
    saved = torch.float16 if asked in ("auto", "float32") else torch.float32
    wanted = saved if asked == "auto" else getattr(torch, asked)
    write(tmp_path, oracle, saved, name_of(OTHER[wanted]))
    model = load_pretrained_model(str(tmp_path), device="cpu", dtype=asked)[1]
    assert_dtype(model, wanted)
    theirs = transformers_model().to(saved).to(wanted)
    if write is tower_beside:  # its file is rounded to what it states
        rounded = {name: w.to(OTHER[wanted]) for name, w in oracle.model.vision_tower.state_dict().items()}
        theirs.model.vision_tower.load_state_dict(rounded)
    assert distance(logits(model), oracle_logits(theirs)) < TOLERANCE[wanted]


@pytest.mark.parametrize(
    ("write", "stated"), [(tower_inside, "float32"), (tower_beside, "bfloat16"), (transformers_format, "bfloat16")]
)
def test_with_8_bits_the_other_parts_have_the_dtype_of_the_products(tmp_path, oracle, eight_bit_logits, write, stated):
    write(tmp_path, oracle, torch.float32, stated)
    model = load_pretrained_model(str(tmp_path), device="cpu", load_8bit=True)[1]
    assert_dtype(model, torch.float16)
    assert distance(logits(model), eight_bit_logits) < 0.03


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_a_tower_that_is_loaded_later_has_its_models_dtype(tmp_path, oracle, asked):
    """As callers of LLaVA load one: the model by from_pretrained, then the tower."""
    wanted = getattr(torch, asked)
    tower_beside(tmp_path, oracle, torch.float32, name_of(OTHER[wanted]))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "mm_vision_tower": str(tmp_path / "clip")}))
    model = LlavaLlamaForCausalLM.from_pretrained(tmp_path, dtype=wanted)
    model.get_vision_tower().load_model()
    assert_dtype(model, wanted)
    assert model.encode_images(PICTURE).dtype == wanted
