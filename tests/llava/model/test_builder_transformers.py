"""Checkpoints as transformers 5 saves them: one file for the whole processor, and settings that LLaVA does not have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from llava.mm_utils import process_images
from llava.model.builder import load_empty_tower, load_pretrained_model
from llava.model.loading.tokenizer import load_tokenizer
from tests.llava.checkpoints import (
    IMAGE_TOKEN,
    TEXT,
    VISION,
    logits,
    oracle_logits,
    write_config,
    write_tokenizer,
)
from tests.weights import randomise

SIDE = VISION["image_size"]
OWN = CLIPImageProcessorPil(
    size={"shortest_edge": SIDE}, crop_size=SIDE, image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.25, 0.125]
)
"""Not CLIP's numbers."""


@pytest.fixture
def folder(tmp_path: Path, oracle: Any) -> Path:
    oracle.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    return tmp_path


def change_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("whole", [True, False], ids=["processor_config.json", "preprocessor_config.json"])
def test_images_are_prepared_by_the_saved_processor(folder: Path, whole: bool) -> None:
    """Whether it is part of a LlavaProcessor or alone, and with the weights or without."""
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<image>"])
    (LlavaProcessor(OWN, tokenizer, patch_size=14) if whole else OWN).save_pretrained(folder)
    assert (folder / "preprocessor_config.json").exists() is not whole
    image = Image.radial_gradient("L").resize((SIDE, SIDE)).convert("RGB")
    expected = OWN(image, return_tensors="pt")["pixel_values"]
    processor = load_pretrained_model(str(folder), device="cpu")[2]
    for found in (processor, load_empty_tower(folder).image_processor):
        torch.testing.assert_close(process_images([image], found, None), expected)


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_an_image_processor_of_another_class_is_refused_by_name(folder: Path, file: str) -> None:
    """Its values mean what its class makes of them."""
    saved = {**OWN.to_dict(), "image_processor_type": "SquashingImageProcessor"}
    (folder / file).write_text(json.dumps(saved if file == "preprocessor_config.json" else {"image_processor": saved}))
    reason = rf"{folder}: .* class 'SquashingImageProcessor' .*{file}.*allowed .* CLIPImageProcessor, .*mean, image_std"
    for load in (load_empty_tower, lambda path: load_pretrained_model(str(path), device="cpu")):
        with pytest.raises(ValueError, match=reason):
            load(folder)


@pytest.mark.parametrize(("name", "warned"), [("CLIPFeatureExtractor", False), ("MyImageProcessor", True)])
def test_another_class_with_the_towers_values_is_a_warning_if_it_is_not_known(
    folder: Path, caplog: pytest.LogCaptureFixture, name: str, warned: bool
) -> None:
    plain = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE)
    (folder / "preprocessor_config.json").write_text(json.dumps({**plain.to_dict(), "image_processor_type": name}))
    load_empty_tower(folder)
    assert (f"{folder}: the image processor is of class '{name}'" in caplog.text) == warned


def test_a_processors_file_without_image_processor_leaves_clips(folder: Path) -> None:
    """As transformers 4 wrote it, beside the image processor's own file."""
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "LlavaProcessor", "patch_size": 14}))
    processor = load_pretrained_model(str(folder), device="cpu")[2]
    assert list(processor.image_mean) == list(CLIPImageProcessorPil().image_mean)


def test_a_list_of_one_layer_is_that_layer(folder: Path, oracle: Any, expected: torch.Tensor) -> None:
    change_config(folder, vision_feature_layer=[-2])
    model = load_pretrained_model(str(folder), device="cpu")[1]
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("place", ["whole", "text"])
def test_embeddings_are_tied_where_either_configuration_says_so(tmp_path: Path, place: str) -> None:
    """The file then has no output layer."""
    tied = {"tie_word_embeddings": True}
    whole, text = (tied if place == name else {} for name in ("whole", "text"))
    settings = {"image_token_index": IMAGE_TOKEN, "image_seq_length": 64, **whole}
    model = randomise(LlavaForConditionalGeneration(
        LlavaConfig(vision_config=VISION, text_config={"model_type": "llama", **TEXT, **text}, **settings)
    ))  # fmt: skip
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    write_tokenizer(tmp_path)
    loaded = load_pretrained_model(str(tmp_path), device="cpu")[1]
    torch.testing.assert_close(logits(loaded), oracle_logits(model), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"vision_feature_layer": [-2, -3]},
            r"vision_feature_layer is \[-2, -3\]; allowed is one layer; .*attach",
        ),
        ({"multimodal_projector_bias": False}, "multimodal_projector_bias is False; allowed is true; .*attach"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'; allowed is 'gelu'; .*attach"),
    ],
    ids=["layers", "no biases", "activation"],
)
def test_what_llavas_projector_cannot_do_is_refused(folder: Path, values: dict[str, Any], message: str) -> None:
    """Loaded, its answers would be wrong."""
    change_config(folder, **values)
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        load_pretrained_model(str(folder), device="cpu")


def test_a_damaged_processors_file_is_named(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "processor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"processor_config\.json is not valid JSON"):
        load_pretrained_model(str(tmp_path), device="cpu")
