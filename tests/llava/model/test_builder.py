"""load_pretrained_model: every format that users have, and nothing decided by a name."""

from __future__ import annotations

import inspect
import json
import shutil

import pytest
import torch
from accelerate import infer_auto_device_map
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlavaForConditionalGeneration,
)

import qlip
from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.builder import load_pretrained_model
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.qlip_encoder import QLIPVisionTower
from tests.llava.checkpoints import (
    PICTURE,
    PROMPT,
    llava_state,
    logits,
    make_llava_checkpoint,
    write_config,
    write_shards,
    write_tokenizer,
    write_tower,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_llava_checkpoint(tmp_path_factory.mktemp("llava"))


def as_safetensors(folder, oracle):
    save_file(llava_state(oracle), folder / "model.safetensors", {"format": "pt"})


def as_safetensors_shards(folder, oracle):
    write_shards(folder, llava_state(oracle), ".safetensors")


def as_bin(folder, oracle):
    torch.save(llava_state(oracle), folder / "pytorch_model.bin")


def as_bin_shards(folder, oracle):
    write_shards(folder, llava_state(oracle), ".bin")


def with_todays_tower_names(folder, oracle):
    save_file(llava_state(oracle, tower_prefix=""), folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("write", "model_type"),
    [
        (as_safetensors, "llava"),
        (as_safetensors, "llava_llama"),
        (as_safetensors_shards, "llava"),
        (as_bin, "llava_llama"),
        (as_bin_shards, "llava"),
        (with_todays_tower_names, "llava_llama"),
    ],
)
def test_llava_checkpoints_load_from_every_kind_of_file(tmp_path, oracle, expected, write, model_type):
    """The tower named in the config is a hub id; its weights lie in the checkpoint, so the hub is never asked."""
    write_config(tmp_path, model_type=model_type)
    write(tmp_path, oracle)
    tokenizer, model, processor, context = load_pretrained_model(str(tmp_path), device="cpu")
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)
    assert isinstance(model.get_vision_tower(), CLIPVisionTower)
    assert processor.crop_size["height"] == 112
    assert context == 2048
    assert tokenizer("what is in the picture?").input_ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("place", ["relative", "absolute"])
def test_the_tower_may_lie_in_a_folder_of_its_own(tmp_path, oracle, expected, place):
    tower = tmp_path / "checkpoint" / "tower"
    write_tower(tower, oracle)
    write_config(tmp_path / "checkpoint", mm_vision_tower="tower" if place == "relative" else str(tower))
    state = {name: tensor for name, tensor in llava_state(oracle).items() if "vision_tower" not in name}
    save_file(state, tmp_path / "checkpoint" / "model.safetensors", {"format": "pt"})
    for flag in (None, {"alpha": 0.0, "max_tokens": None}):
        model = load_pretrained_model(str(tmp_path / "checkpoint"), device="cpu", qlip=flag)[1]
        torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)


def test_a_towers_folder_without_an_image_processor_gets_its_models(tmp_path, oracle, expected):
    write_tower(tmp_path / "tower", oracle)
    (tmp_path / "tower" / "preprocessor_config.json").unlink()
    write_config(tmp_path, mm_vision_tower="tower")
    state = {name: tensor for name, tensor in llava_state(oracle).items() if "vision_tower" not in name}
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    _, model, processor, _ = load_pretrained_model(str(tmp_path), device="cpu")
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)
    assert processor.crop_size["height"] == 112


@pytest.mark.parametrize("qlip", [False, True])
def test_the_tower_alone_may_be_converted_to_half_precision(folder, expected, qlip):
    """As scripts for LLaVA do: model.get_vision_tower().to(dtype=torch.float16)."""
    settings = {"alpha": 0.0, "max_tokens": None} if qlip else False
    model = load_pretrained_model(str(folder), device="cpu", qlip=settings)[1]
    model.get_vision_tower().to(dtype=torch.bfloat16)
    torch.testing.assert_close(logits(model), expected, atol=0.1, rtol=0)


@pytest.mark.parametrize("old_names", [False, True], ids=["today's names", "names of 2023"])
def test_transformers_checkpoints_load(tmp_path, oracle, expected, old_names):
    oracle.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    if old_names:
        renamed = {}
        for name, tensor in load_file(tmp_path / "model.safetensors").items():
            name = name.removeprefix("model.")
            if name.startswith("lm_head"):
                name = f"language_model.{name}"
            elif name.startswith("language_model.") and not name.startswith("language_model.model."):
                name = name.replace("language_model.", "language_model.model.", 1)
            elif name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
                name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
            renamed[name] = tensor
        save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    model = load_pretrained_model(str(tmp_path), device="cpu")[1]
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)


def test_a_transformers_checkpoint_saved_again_in_half_precision_loads(tmp_path, oracle):
    oracle.save_pretrained(tmp_path / "full")
    half = LlavaForConditionalGeneration.from_pretrained(tmp_path / "full", dtype=torch.float16)
    half.save_pretrained(tmp_path / "half")
    write_tokenizer(tmp_path / "half")
    assert load_pretrained_model(str(tmp_path / "half"), device="cpu", dtype="auto")[1].dtype == torch.float16


def test_the_folders_name_decides_nothing(tmp_path, folder, expected):
    """Names that LLaVA's own loader would take for a LoRA, an MPT, a Mistral."""
    for name in ("model-lora", "mpt-7b-mistral-vicuna"):
        shutil.copytree(folder, tmp_path / name)
        model = load_pretrained_model(str(tmp_path / name), None, "llava-lora-mpt", device="cpu")[1]
        torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("in_config", "argument", "alpha", "criterion"),
    [
        (None, None, None, None),
        (False, None, None, None),
        (True, None, 0.8, "objects"),
        ({"alpha": 0.4}, None, 0.4, "objects"),
        ({"alpha": 0.4}, False, None, None),
        ({"alpha": 0.4}, True, 0.4, "objects"),
        (None, True, 0.8, "objects"),
        (None, {"alpha": 0.7}, 0.7, "objects"),
        ({"alpha": 0.4, "criterion": "variance"}, {"alpha": 0.7}, 0.7, "variance"),
        ({"criterion": "variance"}, qlip.QLIPConfig(alpha=0.9), 0.9, "objects"),
    ],
)
def test_the_flag_selects_the_tower(tmp_path, in_config, argument, alpha, criterion):
    folder = make_llava_checkpoint(tmp_path / "model", qlip=in_config)
    _, model, processor, _ = load_pretrained_model(str(folder), device="cpu", qlip=argument)
    tower = model.get_vision_tower()
    if alpha is None:
        assert isinstance(tower, CLIPVisionTower)
    else:
        assert isinstance(tower, QLIPVisionTower)
        assert isinstance(processor, qlip.QLIPImageProcessor)
        assert (tower.settings.alpha, tower.settings.criterion) == (alpha, criterion)


def test_the_prior_is_found_beside_the_checkpoint(tmp_path):
    flag = {"interpolation": "mlp", "mlp": "prior.safetensors"}
    folder = make_llava_checkpoint(tmp_path / "model", qlip=flag)
    qlip.CoordinateMLP(64, hidden=8).save(folder / "prior.safetensors")
    tower = load_pretrained_model(str(folder), device="cpu")[1].get_vision_tower()
    assert tower.vision_tower.prior is not None


def test_a_prior_travels_with_a_saved_model(tmp_path):
    folder = make_llava_checkpoint(tmp_path / "model", qlip={"interpolation": "mlp", "mlp": "p.safetensors"})
    qlip.CoordinateMLP(64, hidden=8).save(folder / "p.safetensors")
    tokenizer, model, *_ = load_pretrained_model(str(folder), device="cpu")
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_pretrained_model(str(tmp_path / "saved"), device="cpu")[1]
    torch.testing.assert_close(logits(again), logits(model))


def test_new_settings_reach_the_processor_in_hand_and_the_saved_config(tmp_path):
    folder = make_llava_checkpoint(tmp_path / "model", qlip=True)
    _, model, processor, _ = load_pretrained_model(str(folder), device="cpu")
    model.get_vision_tower().settings = qlip.QLIPConfig(alpha=0.6, image_size=112)
    assert processor.choose_grid(500, 500) == (8, 8)
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["qlip"]["alpha"] == 0.6


@pytest.mark.parametrize("flag", [None, {"alpha": 0.0, "max_tokens": None}], ids=["clip", "qlip"])
def test_transformers_own_ways_of_loading_find_the_tower(tmp_path, expected, flag, folder):
    """from_pretrained, the Auto class, and load_state_dict as a resumed training calls it."""
    load_pretrained_model(str(folder), device="cpu", qlip=flag)[1].save_pretrained(tmp_path)
    torch.testing.assert_close(logits(LlavaLlamaForCausalLM.from_pretrained(tmp_path)), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), expected, atol=1e-4, rtol=0)
    blank = LlavaLlamaForCausalLM(LlavaConfig.from_pretrained(tmp_path)).eval()
    blank.load_state_dict(load_file(tmp_path / "model.safetensors"))
    torch.testing.assert_close(logits(blank), expected, atol=1e-4, rtol=0)


def test_a_device_map_places_tower_and_projector_before_the_layers(folder):
    """On a device too small for everything, layers are what goes elsewhere."""
    model = load_pretrained_model(str(folder), device="cpu")[1]
    weights = sum(p.numel() * 4 for p in model.parameters())
    placed = infer_auto_device_map(
        model, max_memory={0: int(weights * 0.85), "cpu": 10 * weights}, no_split_module_classes=model._no_split_modules
    )
    assert placed["model.vision_tower"] == placed["model.mm_projector"] == 0
    assert "cpu" in placed.values()


def test_a_saved_model_is_a_llava_checkpoint_again(tmp_path, folder, expected, oracle):
    tokenizer, model, *_ = load_pretrained_model(str(folder), device="cpu", qlip={"alpha": 0.0, "max_tokens": None})
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(llava_state(oracle))
    again = load_pretrained_model(str(tmp_path), device="cpu")[1]
    assert isinstance(again.get_vision_tower(), QLIPVisionTower)
    torch.testing.assert_close(logits(again), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, torch.float32),
        ({"torch_dtype": torch.bfloat16}, torch.bfloat16),
        ({"torch_dtype": "float16"}, torch.float16),
        ({"dtype": torch.float32}, torch.float32),
        ({"device_map": "cpu"}, torch.float32),
        ({"device": "cpu", "device_map": "auto"}, torch.float32),
    ],
    ids=str,
)
def test_device_and_dtype_are_obeyed_by_every_part(folder, options, dtype):
    options = {"device": "cpu", **options} if "device_map" not in options else options
    model = load_pretrained_model(str(folder), **options)[1]
    parts = [model.get_vision_tower(), model.model.mm_projector, model.model.layers, model.lm_head]
    for part in parts:
        assert {p.dtype for p in part.parameters()} == {dtype}
        assert {p.device.type for p in part.parameters()} == {"cpu"}
    assert model.generate(PROMPT, images=PICTURE.to(dtype), do_sample=False, max_new_tokens=3).shape == (1, 3)


@pytest.mark.parametrize(("flag", "tree"), [("load_8bit", False), ("load_4bit", True)])
def test_quantisation_spares_tower_and_projector(folder, expected, flag, tree):
    settings = {"alpha": 0.0, "max_tokens": None} if tree else None
    model = load_pretrained_model(str(folder), device="cpu", qlip=settings, **{flag: True})[1]
    kind = {"load_8bit": "Linear8bitLt", "load_4bit": "Linear4bit"}[flag]
    quantised = {name for name, module in model.named_modules() if type(module).__name__ == kind}
    assert len(quantised) == 2 * 7
    assert all(name.startswith("model.layers.") for name in quantised)
    close = torch.nn.functional.cosine_similarity(logits(model).float().flatten(), expected.flatten(), dim=0)
    assert close > {"load_8bit": 0.99, "load_4bit": 0.8}[flag]
    model.generate(PROMPT, images=PICTURE, do_sample=False, max_new_tokens=3)


def test_the_signature_is_llavas_and_unknown_arguments_are_a_type_error(folder):
    first = list(inspect.signature(load_pretrained_model).parameters)[:8]
    assert first == [
        "model_path",
        "model_base",
        "model_name",
        "load_8bit",
        "load_4bit",
        "device_map",
        "device",
        "use_flash_attn",
    ]
    with pytest.raises(TypeError, match="multimodal"):
        load_pretrained_model(str(folder), None, "llava", device_map="auto", multimodal=True)
