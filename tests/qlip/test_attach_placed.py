"""qlip.attach on models that are quantised, or spread over devices by accelerate's hooks."""

from __future__ import annotations

import pytest
import torch
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

import qlip
from tests.qlip.hosts import NATIVE, make_language_model, make_processor, picture

GREEDY = {"do_sample": False, "max_new_tokens": 4}
PROMPTS = ["<image> what?", "<image>"]
QUANTISED = {
    "Linear4bit": {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32, "bnb_4bit_quant_type": "nf4"},
    "Linear8bitLt": {"load_in_8bit": True},
}
SPREAD = {
    "model.vision_tower": "cpu",
    "model.multi_modal_projector": "cpu",
    "model.language_model": "disk",
    "lm_head": "disk",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    make_language_model("llava").save_pretrained(folder)
    return folder


def ask(processor, pictures):
    return processor(images=pictures, text=PROMPTS, return_tensors="pt", padding=True)


@torch.no_grad()
def assert_attaches(model, tolerance: float = 1e-4) -> None:
    """At the native grid the untouched model's logits and answers; with leaves of all sizes, an answer."""
    natives = [picture(NATIVE, NATIVE, seed) for seed in range(2)]
    inputs = ask(make_processor("llava"), natives)
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    real = inputs["attention_mask"].bool()
    expected = model(**inputs, position_ids=positions).logits[real]
    answer = model.generate(**inputs, **GREEDY)
    model, processor = qlip.attach(model, make_processor("llava"), alpha=0.0, max_tokens=None)
    inputs = ask(processor, natives)
    torch.testing.assert_close(model(**inputs).logits[real], expected, atol=tolerance, rtol=0)
    assert torch.equal(model.generate(**inputs, **GREEDY), answer)
    model, processor = qlip.attach(model, processor, alpha=0.3, max_tokens=40)
    inputs = ask(processor, [picture(112, 168, 1), picture(98, 56, 2)])
    assert model.generate(**inputs, **GREEDY).shape == (2, inputs["input_ids"].shape[1] + 4)


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised(folder, kind):
    model = LlavaForConditionalGeneration.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(**QUANTISED[kind]), device_map={"": "cpu"}
    )
    assert type(model.model.vision_tower.encoder.layers[0].mlp.fc1).__name__ == kind
    assert_attaches(model, tolerance=2e-3)


@pytest.mark.parametrize("device_map", ["auto", SPREAD], ids=["auto", "hooks"])
def test_device_maps(folder, tmp_path, device_map):
    model = LlavaForConditionalGeneration.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path)
    assert hasattr(model, "_hf_hook") == (device_map is SPREAD)
    assert_attaches(model)
    with torch.no_grad():
        natives = [picture(NATIVE, NATIVE, seed) for seed in range(2)]
        model, _ = qlip.detach(model)
        inputs = ask(make_processor("llava"), natives)
        expected = make_language_model("llava")(**inputs).logits
        torch.testing.assert_close(model(**inputs).logits, expected)
