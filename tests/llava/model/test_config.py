"""A saved config.json says the same to today's transformers and to LLaVA's own code on transformers 4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, LlamaConfig

from llava.model.config import LlavaConfig
from llava.model.loading.checkpoint import inspect
from scripts.checkpoints.formats import convert
from tests.llava.checkpoints import make_llava_checkpoint

SIZES = {"vocab_size": 10, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


def saved(folder: Path, **fields: Any) -> dict[str, Any]:
    LlavaConfig(**SIZES, **fields).save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def test_fields_whose_presence_llava_asks_for_are_there_only_with_a_value(tmp_path: Path) -> None:
    plain = saved(tmp_path)
    assert not {"max_sequence_length", "mm_vision_tower", "mm_hidden_size", "tokenizer_model_max_length"} & set(plain)
    assert saved(tmp_path, max_sequence_length=99, mm_vision_tower="tower")["max_sequence_length"] == 99


@pytest.mark.parametrize(
    ("rope", "scaling"),
    [
        ({}, None),
        ({"rope_scaling": None}, None),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, {"type": "linear", "factor": 2.0}),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, {"type": "dynamic", "factor": 4.0}),
    ],
)
def test_dtype_and_rope_have_their_old_and_new_names(tmp_path: Path, rope: dict[str, Any], scaling: Any) -> None:
    values = saved(tmp_path, rope_theta=5000.0, torch_dtype="float16", **rope)
    assert values["torch_dtype"] == values["dtype"] == "float16"
    assert values["rope_theta"] == values["rope_parameters"]["rope_theta"] == 5000.0
    assert values.get("rope_scaling") == scaling
    again, llama = LlavaConfig.from_pretrained(tmp_path), LlamaConfig(rope_theta=5000.0, **rope)
    kept = ("rope_theta", "rope_type", "factor")
    assert [again.rope_parameters.get(name) for name in kept] == [llama.rope_parameters.get(name) for name in kept]


def test_llama_3s_rope_keeps_all_its_numbers(tmp_path: Path) -> None:
    numbers = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
    values = saved(tmp_path, rope_theta=500000.0, rope_scaling={"rope_type": "llama3", **numbers})
    assert values["rope_scaling"] == {"rope_type": "llama3", **numbers}
    assert LlavaConfig.from_pretrained(tmp_path).rope_parameters["low_freq_factor"] == 1.0


def test_a_converted_checkpoint_has_both_names_too(tmp_path: Path) -> None:
    source = make_llava_checkpoint(tmp_path / "llava", rope_theta=5000.0)
    convert(str(source), tmp_path / "transformers")
    values = json.loads((tmp_path / "transformers" / "config.json").read_text())
    assert values["torch_dtype"] == values["dtype"] == "float32"
    assert values["text_config"]["rope_theta"] == 5000.0
    assert AutoConfig.from_pretrained(tmp_path / "transformers").text_config.rope_parameters["rope_theta"] == 5000.0
    assert inspect(tmp_path / "transformers").config.rope_parameters["rope_theta"] == 5000.0


@pytest.mark.parametrize(
    ("stated", "length"),
    [({}, 4096), ({"tokenizer_model_max_length": 2048}, 2048), ({"tokenizer_model_max_length": int(1e30)}, 4096)],
    ids=["none", "LLaVA's", "a tokenizer's none"],
)
def test_the_context_is_what_is_stated_unless_that_is_no_number_of_tokens(stated: dict[str, int], length: int) -> None:
    assert LlavaConfig(max_position_embeddings=4096, **stated).context_length == length
