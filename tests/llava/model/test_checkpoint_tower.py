"""A tower whose weights are in the checkpoint, without its configuration, as `unfreeze_mm_vision_tower` leaves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from llava.model import LlavaLlamaForCausalLM
from llava.model.builder import load_pretrained_model
from llava.model.multimodal_encoder.pretrained import (
    OPENAI_CLIP,
    drops_last_layer,
    fit_vision_config,
    infer_vision_config,
)
from tests.llava.checkpoints import (
    IMAGE_TOKEN,
    TEXT,
    VISION,
    llava_state,
    logits,
    make_llava_checkpoint,
    oracle_logits,
    transformers_model,
    write_config,
    write_tokenizer,
    write_tower,
)
from tests.weights import randomise

OTHER = VISION | {"num_attention_heads": 2, "hidden_act": "gelu"}  # neither is seen in the weights
NAME = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


@pytest.fixture
def oracle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LlavaForConditionalGeneration:
    """Transformers' model on a CLIP that is not OpenAI's; its weights as a checkpoint in `tmp_path / "llava"`."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    text = {"model_type": "llama", **TEXT}
    config = LlavaConfig(vision_config=OTHER, text_config=text, image_token_index=IMAGE_TOKEN, image_seq_length=64)
    model = randomise(LlavaForConditionalGeneration(config))
    write_config(tmp_path / "llava", mm_vision_tower=NAME, unfreeze_mm_vision_tower=True)
    save_file(llava_state(model), tmp_path / "llava" / "model.safetensors", {"format": "pt"})
    return model


def test_its_heads_and_activation_are_those_that_the_hub_or_the_cache_gives(oracle, tmp_path):
    repository = tmp_path / f"models--{NAME.replace('/', '--')}"
    (repository / "snapshots" / "1a2b").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1a2b")
    published = {"model_type": "clip", "vision_config": dict(OTHER)}
    (repository / "snapshots" / "1a2b" / "config.json").write_text(json.dumps(published))
    model = load_pretrained_model(tmp_path / "llava", device="cpu", cache_dir=str(tmp_path))[1]
    torch.testing.assert_close(logits(model), oracle_logits(oracle), atol=1e-4, rtol=0)


def test_without_the_published_configuration_nothing_is_guessed(oracle, tmp_path):
    with pytest.raises(
        ValueError, match=rf"heads and activation, and the vision tower '{NAME}' .*set mm_vision_config"
    ):
        load_pretrained_model(tmp_path / "llava", device="cpu", cache_dir=str(tmp_path))
    write_config(tmp_path / "llava", mm_vision_tower=NAME, mm_vision_config=OTHER)
    model = load_pretrained_model(tmp_path / "llava", device="cpu")[1]
    torch.testing.assert_close(logits(model), oracle_logits(oracle), atol=1e-4, rtol=0)


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """A checkpoint with a tower of its own, whose configuration names a tower with other weights."""
    other = write_tower(tmp_path / "openai-clip-vit-large-patch14-336", transformers_model(seed=9))
    return make_llava_checkpoint(tmp_path / "tuned", model_type="llava_llama", mm_vision_tower=str(other))


def by_subfolder(folder: Path) -> Any:
    return LlavaLlamaForCausalLM.from_pretrained(folder.parent, subfolder=folder.name)


def with_configuration(folder: Path) -> Any:
    return LlavaLlamaForCausalLM.from_pretrained(folder, config=folder / "config.json")


WAYS = [
    LlavaLlamaForCausalLM.from_pretrained,
    AutoModelForCausalLM.from_pretrained,
    by_subfolder,
    with_configuration,
]


@pytest.mark.parametrize("load", WAYS, ids=["class", "auto", "subfolder", "config"])
def test_every_way_to_load_takes_the_checkpoints_own_tower(load, tuned):
    model = load(tuned)
    model.get_vision_tower().load_model()  # as LLaVA's callers do
    torch.testing.assert_close(logits(model), oracle_logits(transformers_model()), atol=1e-4, rtol=0)


def test_the_tower_is_saved_with_the_model(tuned, tmp_path):
    LlavaLlamaForCausalLM.from_pretrained(tuned).save_pretrained(tmp_path / "again")
    write_tokenizer(tmp_path / "again")
    again = load_pretrained_model(tmp_path / "again", device="cpu")[1]
    torch.testing.assert_close(logits(again), oracle_logits(transformers_model()), atol=1e-4, rtol=0)


def test_a_tower_that_is_elsewhere_is_loaded_from_there(tmp_path):
    elsewhere = write_tower(tmp_path / "clip", transformers_model())
    weights = {name: tensor for name, tensor in llava_state(transformers_model()).items() if "vision_tower" not in name}
    write_config(tmp_path / "llava", model_type="llava_llama", mm_vision_tower=str(elsewhere))
    save_file(weights, tmp_path / "llava" / "model.safetensors", {"format": "pt"})
    model = LlavaLlamaForCausalLM.from_pretrained(tmp_path / "llava")
    assert not model.get_vision_tower().is_loaded
    model.get_vision_tower().load_model()
    torch.testing.assert_close(logits(model), oracle_logits(transformers_model()), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "name",
    [
        "openai/clip-vit-large-patch14-336",
        "/data/models/clip-vit-large-patch14-336/",
        "/x/openai-clip-vit-base-patch16",
        "/data/.cache/huggingface/hub/models--openai--clip-vit-large-patch14-336/snapshots/ce19dc91",
        r"C:\models\clip-vit-large-patch14",
        "Lin-Chen/ShareGPT4V-7B_Pretrained_vit-large336-l12",
    ],
)
def test_openais_clips_are_known_by_any_copys_name(name):
    assert OPENAI_CLIP.fullmatch(name)


@pytest.mark.parametrize("name", [NAME, "laion/CLIP-ViT-L-14", "/x/my-clip-vit-large-patch14", "/x/clip"])
def test_other_clips_are_not_taken_for_openais(name):
    assert not OPENAI_CLIP.fullmatch(name)


@pytest.mark.parametrize(
    ("width", "layers", "heads", "missing"),
    [(768, 12, 12, False), (1152, 27, 16, False), (1152, 26, 16, True), (1536, 40, 16, False)],
    ids=["base", "so400m", "LLaVA-NeXT's so400m", "giant"],
)
def test_a_siglip_without_a_head_has_all_layers_unless_one_of_the_published_ones_is_missing(
    width, layers, heads, missing
):
    shapes = {
        "embeddings.patch_embedding.weight": (width, 3, 16, 16),
        "embeddings.patch_embedding.bias": (width,),
        "embeddings.position_embedding.weight": (576, width),
        **{f"encoder.layers.{i}.mlp.fc1.weight": (4 * width, width) for i in range(layers)},
    }
    config = infer_vision_config(shapes)
    assert (config.num_attention_heads, config.image_size) == (heads, 384)
    assert drops_last_layer(config) is missing
    assert not drops_last_layer(infer_vision_config({**shapes, "head.probe": (1, 1, width)}))


@pytest.mark.parametrize(("width", "layers"), [(768, 12), (1024, 24)])
def test_a_clip_that_lacks_layers_is_refused(width, layers):
    """Its last but one would be another. Widths and depths are those of OpenAI's ViT-B and ViT-L."""
    shapes = {
        "embeddings.patch_embedding.weight": (width, 3, 14, 14),
        "embeddings.position_embedding.weight": (577, width),
        "embeddings.class_embedding": (width,),
        **{f"encoder.layers.{i}.mlp.fc1.weight": (4 * width, width) for i in range(layers)},
    }
    assert infer_vision_config(shapes).num_hidden_layers == layers
    del shapes[f"encoder.layers.{layers - 1}.mlp.fc1.weight"]
    words = f"has {layers - 1} of {layers} layers; download or convert"
    with pytest.raises(ValueError, match=words):
        infer_vision_config(shapes)
    with pytest.raises(ValueError, match=words):
        fit_vision_config(CLIPVisionConfig(num_hidden_layers=layers), shapes)


def test_other_vision_models_drop_nothing():
    assert not drops_last_layer(CLIPVisionConfig())
    assert not drops_last_layer(SiglipVisionConfig())
    config = SiglipVisionConfig()
    if "vision_use_head" in vars(config):
        del config.vision_use_head  # transformers 5.17 has it only where a file says so
    assert not drops_last_layer(config)
