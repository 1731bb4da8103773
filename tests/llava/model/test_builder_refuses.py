"""Unsupported checkpoints and arguments are refused by name, with the file and the way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.builder import load_empty_tower, load_pretrained_model
from llava.model.loading.checkpoint import inspect
from tests.llava.checkpoints import (
    TEXT,
    VISION,
    llava_config,
    make_llava_checkpoint,
    transformers_model,
    write_language_model,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_llava_checkpoint(tmp_path_factory.mktemp("llava"))


def write(folder: Path, config: dict) -> str:
    """A folder with a config.json alone: what is refused, is refused before any weight is looked for."""
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
V16 = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad", "image_grid_pinpoints": PINPOINTS}
ATTACH_NEXT = r"by transformers' LlavaNextForConditionalGeneration .*qlip\.attach"
SUPPORTED = "supported are LLaVA-1.5 and LLaVA-1.6 checkpoints"


@pytest.mark.parametrize(
    ("changes", "name", "way_out"),
    [
        ({"model_type": "llava_qwen_moe"}, "LLaVA-NeXT on Qwen's mixture of experts", SUPPORTED),
        ({"mm_resampler_type": "perceiver"}, "LLaVA with a resampler", SUPPORTED),
        ({"model_type": "gpt2"}, "of type 'gpt2'", SUPPORTED),
        ({"model_type": None}, "of type None", SUPPORTED),
    ],
)
def test_llavas_other_models_are_refused_by_name(tmp_path, changes, name, way_out):
    path = write(tmp_path, llava_config(**changes))
    message = rf"config\.json: the checkpoint is {name}, which is not supported.*; .*{way_out}"
    with pytest.raises(ValueError, match=message):
        load_pretrained_model(path, device="cpu")
    with pytest.raises(ValueError, match=message):
        load_empty_tower(path)


@pytest.mark.parametrize(
    ("changes", "name", "way_out"),
    [
        ({"model_type": "llava_onevision"}, "LLaVA-OneVision", SUPPORTED),
        ({"model_type": "llava_next_video"}, "LLaVA-NeXT-Video", SUPPORTED),
        ({"model_type": "video_llava"}, "Video-LLaVA", SUPPORTED),
        ({"model_type": "vipllava"}, "ViP-LLaVA", r"VipLlavaForConditionalGeneration .*qlip\.attach"),
        ({"model_type": "paligemma"}, "of type 'paligemma'", SUPPORTED),
        ({"model_type": "llava_next", "text_config": {"model_type": "gemma"}}, "LLaVA on gemma", ATTACH_NEXT),
        ({"text_config": {"model_type": "gemma"}}, "LLaVA on gemma", r"LlavaForConditional.*qlip\.attach"),
    ],
)
def test_transformers_other_models_are_refused_by_name(tmp_path, changes, name, way_out):
    path = write(tmp_path, {**transformers_model().config.to_dict(), **changes})
    with pytest.raises(ValueError, match=rf"config\.json: the checkpoint is {name}, which is not supported.*{way_out}"):
        load_pretrained_model(path, device="cpu")


@pytest.mark.parametrize(
    "changes",
    [
        {"unfreeze_mm_vision_tower": True, "mm_patch_merge_type": "flat", "image_grid_pinpoints": PINPOINTS},
        {"s2": False, "s2_scales": "336,672,1008", "mm_patch_merge_type": None, "mm_resampler_type": None},
        {"mm_patch_merge_type": "spatial", "image_aspect_ratio": "square"},
    ],
    ids=str,
)
def test_what_a_config_names_and_does_not_use_is_no_reason(tmp_path, changes):
    assert load_pretrained_model(str(make_llava_checkpoint(tmp_path, **changes)), device="cpu")[1].get_vision_tower()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_projector_type": "resampler"}, "mm_projector_type is 'resampler'; allowed are 'linear', 'mlp<N>x_gelu'"),
        ({"mm_projector_type": None}, "mm_projector_type is None; allowed are"),
        ({"mm_vision_select_feature": "all"}, "mm_vision_select_feature is 'all'; allowed are 'patch', 'cls_patch'"),
        ({"mm_vision_tower": 3}, "mm_vision_tower"),
        ({"image_aspect_ratio": "anyres"}, "image_grid_pinpoints is None; allowed are a list"),
        ({**V16, "image_grid_pinpoints": [[336, "a"]]}, r"image_grid_pinpoints holds \[336, 'a'\]; allowed are a list"),
        ({**V16, "mm_patch_merge_type": "unpad"}, "mm_patch_merge_type is 'unpad'; allowed are 'flat', 'spatial'"),
        ({"mm_vision_config": [1]}, "mm_vision_config"),
        (
            {"mm_vision_config": {"model_type": "eva"}},
            "the vision tower is of type 'eva'; allowed are clip_vision_model",
        ),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"qlip": {"max_tokens": 96.5}}, "max_tokens is 96.5; it must be an integer"),
        ({"qlip": {"max_tokens": True}}, "max_tokens is True; it must be an integer"),
        ({"qlip": {"alpha": "x"}}, "alpha is 'x'; it must be"),
        ({"qlip": {"alpha": None}}, "alpha is None; it must be"),
        ({"qlip": {"alpha": [1]}}, r"alpha is \[1\]; it must be"),
        ({"qlip": {"alpha": float("nan")}}, "alpha is nan; it must be"),
        ({"qlip": {"alpha": True}}, "alpha is True; it must be"),
        ({"qlip": {"aplha": 1}}, r"unknown QLIP setting aplha \(did you mean alpha\?\); allowed are"),
        ({"qlip": {"criterion": ["structure"]}}, "criterion is"),
        ({"qlip": {"thumbnail": 1}}, "thumbnail is 1; it must be true or false"),
        ({"qlip": {"size_bias": True}}, "size_bias is True; it must be"),
        ({"qlip": {"llm_size_bias": float("inf")}}, "llm_size_bias is inf; it must be"),
        ({"qlip": {"seed": "x"}}, "seed is 'x'; it must be"),
        ({"qlip": {"interpolation": "mlp", "mlp": 3}}, "mlp is 3; it must be"),
        ({"qlip": {"structure_size": 4}}, "structure_size is 4; it must be odd"),
        ({"qlip": [1]}, r"qlip is \[1\]; allowed are true, false, null"),
        ({"qlip": "yes"}, "qlip is 'yes'; allowed are true, false, null"),
    ],
    ids=str,
)
def test_a_wrong_value_names_its_key_and_the_file(tmp_path, changes, message):
    """Before weights are looked for, and whatever the caller says about QLIP."""
    path = write(tmp_path, llava_config(**changes))
    for load in (load_pretrained_model, load_empty_tower):
        with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
            load(path, qlip=False)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_a_part_of_transformers_config_is_an_object(tmp_path, part):
    path = write(tmp_path, {**transformers_model().config.to_dict(), part: [1]})
    with pytest.raises(ValueError, match=rf"config\.json: .*{part} is \[1\]; it must be an object"):
        load_pretrained_model(path, device="cpu")


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_a_transformers_config_that_lacks_a_part_is_named(tmp_path, part):
    """The tiny model's weights would not fit the defaults, those of LLaVA-7B, which takes gigabytes to find out."""
    transformers_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (other,) = {"text_config", "vision_config"} - {part}
    del config[part]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"config.json: it holds {other} alone"):
        load_pretrained_model(tmp_path, device="cpu")


def test_a_wrong_value_of_the_callers_names_no_file(folder):
    with pytest.raises(ValueError, match="^unknown QLIP setting aplha"):
        load_pretrained_model(str(folder), device="cpu", qlip={"aplha": 1})
    with pytest.raises(TypeError, match="^max_tokens is 1.5; it must be an integer"):
        load_pretrained_model(str(folder), device="cpu", qlip={"max_tokens": 1.5})
    with pytest.raises(TypeError, match="^qlip is 3"):
        load_pretrained_model(str(folder), device="cpu", qlip=3)


def test_a_language_model_alone_has_no_tower(tmp_path):
    """It loads, for callers that know; what needs a tower says how to get one."""
    base = write_language_model(tmp_path, transformers_model())
    assert load_pretrained_model(str(base), device="cpu")[2] is None
    assert not inspect(base).config.has_tower
    with pytest.raises(ValueError, match=r"has no vision tower, it is a language model alone; .*\(--model-base\)"):
        load_empty_tower(base)


def test_a_base_of_another_kind_is_refused(tmp_path):
    """Its weights have the same names but for Qwen2's biases."""
    base = write_language_model(tmp_path / "base", transformers_model())
    values = json.loads((base / "config.json").read_text())
    write(base, {**values, "model_type": "qwen2"})
    (tmp_path / "projector").mkdir()
    torch.save({"model.mm_projector.0.weight": torch.zeros(64, 64)}, tmp_path / "projector" / "mm_projector.bin")
    path = write(tmp_path / "projector", llava_config())
    with pytest.raises(ValueError, match="base model, is of type 'llava_qwen'; .*projector needs 'llava_llama'"):
        load_pretrained_model(path, str(base), device="cpu")


def test_arguments_are_checked(folder, tmp_path):
    with pytest.raises(ValueError, match="both set"):
        load_pretrained_model(str(folder), load_8bit=True, load_4bit=True)
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        load_pretrained_model(str(folder), device="cpu", torch_dtype="int8")
    with pytest.raises(ValueError, match="mm_vision_select_layer is -30"):
        load_pretrained_model(str(make_llava_checkpoint(tmp_path, mm_vision_select_layer=-30)), device="cpu")


def test_config_fields_are_validated():
    with pytest.raises(ValueError, match="mm_vision_select_feature is 'all'; allowed are 'patch', 'cls_patch'"):
        LlavaConfig(mm_vision_select_feature="all")
    with pytest.raises(ValueError, match="mm_projector_type is 'resampler'"):
        LlavaLlamaForCausalLM(LlavaConfig(**TEXT, mm_projector_type="resampler", mm_vision_config=VISION))


def test_a_dtype_may_be_written_as_torch_prints_it(tmp_path):
    write(tmp_path, llava_config(torch_dtype="torch.float16"))
    assert inspect(tmp_path).config.dtype == torch.float16


def test_a_dtype_that_torch_does_not_have_is_named_with_its_file(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json: .*float99"):
        load_pretrained_model(write(tmp_path, llava_config(torch_dtype="float99")), device="cpu")


def test_a_dtype_that_nothing_is_computed_in_is_named_with_its_file(tmp_path):
    path = write(tmp_path, llava_config(torch_dtype="float8_e4m3fn"))
    with pytest.raises(ValueError, match=r"config\.json: torch_dtype is 'float8_e4m3fn'"):
        load_pretrained_model(path, device="cpu", torch_dtype="auto")


@pytest.mark.parametrize("padding", [TEXT["vocab_size"], -TEXT["vocab_size"] - 1])
def test_a_padding_token_beyond_the_vocabulary_is_named(tmp_path, padding):
    path = write(tmp_path, llava_config(pad_token_id=padding))
    with pytest.raises(ValueError, match=rf"config\.json: pad_token_id is {padding}; allowed are null and ids below"):
        inspect(Path(path))
