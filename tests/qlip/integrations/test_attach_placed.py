"""qlip.attach on models that are quantised, or spread over devices by accelerate's hooks."""

from __future__ import annotations

import pytest
import torch
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

import qlip
from tests.qlip.integrations.models import NATIVE, TEXT, VISION, make_language_model, make_processor, picture

GREEDY = {"do_sample": False, "max_new_tokens": 4}
PROMPTS = ["<image> what?", "<image>"]
QUANTISED = {
    "Linear4bit": {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16, "bnb_4bit_quant_type": "nf4"},
    "Linear8bitLt": {"load_in_8bit": True},
}
WIDE = {"hidden_size": 64, "intermediate_size": 128}
"""Widths that every kernel of 4-bit layers takes: some CPUs' multiply in blocks of 64 inputs and 32 outputs."""

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
def test_quantised(tmp_path, kind):
    """In bfloat16 for 4 bits, as some CPUs' kernels compute whatever is asked, so to its precision."""
    make_language_model("llava", vision_config={**VISION, **WIDE}, text_config={**TEXT, **WIDE}).save_pretrained(
        tmp_path
    )
    model = LlavaForConditionalGeneration.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(**QUANTISED[kind]), device_map={"": "cpu"}
    )
    quantised = [module for module in model.modules() if type(module).__name__ == kind]
    assert model.model.vision_tower.encoder.layers[0].mlp.fc1 in quantised
    assert all(layer.in_features % 64 == 0 and layer.out_features % 32 == 0 for layer in quantised)
    assert_attaches(model, tolerance={"Linear4bit": 0.02, "Linear8bitLt": 2e-3}[kind])


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
