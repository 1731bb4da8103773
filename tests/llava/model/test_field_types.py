"""A field of config.json that has the wrong type is named, with the file, before weights are looked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.config import LLAVA_FIELDS
from llava.model.loading.checkpoint import inspect
from tests.llava.checkpoints import PICTURE, PROMPT, TEXT, VISION, llava_config, transformers_model

OTHERS: list[Any] = ["x", "2048", 1.5, True, None, [-2], {"a": 1}, -5, float("nan")]
"""A value of each of JSON's types."""

TEXTS, WHOLE, FLAG = ("x", "2048", None), (None,), (True, None)
TAKEN: dict[str, tuple[Any, ...]] = {
    "conv_mode": TEXTS,  # its name is checked where it is used: --conv-mode may replace it
    "image_aspect_ratio": TEXTS,
    "max_sequence_length": WHOLE,
    "mm_hidden_size": WHOLE,
    "mm_patch_merge_type": WHOLE,
    "mm_projector_type": (),
    "mm_use_im_patch_token": FLAG,
    "mm_use_im_start_end": FLAG,
    "mm_vision_config": WHOLE,
    "mm_vision_select_feature": (),
    "mm_vision_select_layer": (-5,),  # the embeddings, below the four layers
    "mm_vision_tower": TEXTS,
    "qlip": FLAG,
    "s2": FLAG,
    "tokenizer_model_max_length": WHOLE,
    "tokenizer_padding_side": (),
}
"""Which of `OTHERS` each field may have."""

UNREAD = {"image_grid_pinpoints", "s2_scales"}
"""Fields that count beside another one only, where test_builder_refuses.py and test_s2.py try them."""


def write(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_every_field_is_tried() -> None:
    assert set(TAKEN) | UNREAD == LLAVA_FIELDS


@pytest.mark.parametrize("name", TAKEN)
def test_a_field_of_another_type_is_named_with_its_file(tmp_path: Path, name: str) -> None:
    for value in OTHERS:
        path = write(tmp_path, llava_config(mm_vision_config=VISION) | {name: value})
        if any(value is taken or value == taken for taken in TAKEN[name] if type(value) is type(taken)):
            inspect(path)
            continue
        with pytest.raises(
            ValueError, match=rf"config\.json: .*({name}|unknown QLIP setting|vision tower is of type None)"
        ):
            inspect(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_act", "x"),
        ("model_type", []),
        ("num_attention_heads", 0),
        ("output_hidden_states", "x"),
        ("quantization_config", "x"),
        ("rope_theta", "x"),
        ("rope_theta", None),
        ("vocab_size", -5),
    ],
)
def test_so_is_a_field_of_the_language_model_that_transformers_does_not_check(
    tmp_path: Path, field: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=rf"config\.json: .*{field}|config\.json: the checkpoint is of type \[\]"):
        inspect(write(tmp_path, llava_config() | {field: value}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_feature_layer": "-2"}, "vision_feature_layer is '-2'; it must be an integer"),
        ({"vision_feature_layer": None}, "vision_feature_layer is None; it must be an integer"),
        ({"vision_feature_layer": -30}, "vision_feature_layer is -30; 4 layers have -5 to 4"),
        ({"vision_config": VISION | {"num_attention_heads": 0}}, "num_attention_heads is 0; it must be positive"),
        ({"text_config": {"model_type": "llama", **TEXT, "rope_theta": "x"}}, "rope_theta is 'x'; it must be"),
        ({"text_config": {"model_type": [1]}}, r"LLaVA on \[1\], which is not supported"),
    ],
    ids=str,
)
def test_so_is_a_field_of_transformers_format(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, transformers_model().config.to_dict() | {"dtype": "float32"} | changes)
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
        inspect(path)


def test_transformers_list_of_one_layer_is_that_layer(tmp_path: Path) -> None:
    path = write(tmp_path, transformers_model().config.to_dict() | {"dtype": "float32", "vision_feature_layer": [-3]})
    assert inspect(path).config.mm_vision_select_layer == -3


def test_a_layer_that_the_tower_lacks_is_named_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, llava_config(mm_vision_config=VISION, mm_vision_select_layer=-30))
    with pytest.raises(ValueError, match=r"config\.json: mm_vision_select_layer is -30; 4 layers have -5 to 4"):
        inspect(path)


@pytest.mark.parametrize("length", [2048, 2048.0])
def test_a_length_is_whole_however_it_is_written(tmp_path: Path, length: float) -> None:
    found = inspect(write(tmp_path, llava_config(mm_vision_config=VISION, tokenizer_model_max_length=length)))
    assert type(found.config.context_length) is int and found.config.context_length == 2048


def test_values_as_others_write_them_are_taken(tmp_path: Path) -> None:
    flags = {"mm_use_im_start_end": 1, "mm_use_im_patch_token": 0, "output_hidden_states": 0}
    config = inspect(write(tmp_path, llava_config(mm_vision_config=VISION) | flags)).config
    assert [getattr(config, name) for name in flags] == [True, False, False]
    mpt = {"model_type": "llava_mpt", "rope_scaling": {"type": "linear", "factor": 2.0}}  # MPT has no rotary positions
    inspect(write(tmp_path, {**llava_config(mm_vision_config=VISION), **mpt}))
    layers = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}
    config = {**llava_config(mm_vision_config=VISION), "model_type": "llava_qwen"}
    inspect(write(tmp_path, {**config, "rope_parameters": layers}))
    for wrong, words in (({"full_attention": {"rope_theta": "x"}}, "rope_theta is 'x'"), (0, "rope_parameters")):
        with pytest.raises(ValueError, match=words):
            inspect(write(tmp_path, {**config, "rope_parameters": wrong}))


def test_return_dict_of_a_file_does_not_stop_the_model() -> None:
    """transformers' models need it inside; a call may still ask for a tuple."""
    sizes = {**TEXT, "num_hidden_layers": 1, "mm_hidden_size": VISION["hidden_size"]}
    model = LlavaLlamaForCausalLM(LlavaConfig(**sizes, mm_vision_config=VISION, return_dict=False)).eval()
    with torch.no_grad():
        logits = model(PROMPT, images=PICTURE).logits
        assert torch.equal(model(PROMPT, images=PICTURE, return_dict=False)[0], logits)
