"""Attached models in float64: what they compute in float32, to its precision."""

from __future__ import annotations

import pytest
import torch

import qlip
from tests.qlip.integrations.models import GREEDY, PICTURES, PROMPTS, TREE, ask, attached, make_vision_model

SETTINGS = {
    "defaults": {},
    "biased": {**TREE, "llm_size_bias": 1.0, "size_bias": 0.5},
    "thumbnail": {**TREE, "thumbnail": True, "llm_size_bias": 0.5},
}


@pytest.mark.parametrize(
    ("kind", "settings", "attention"),
    [
        ("llava", "biased", "sdpa"),
        ("llava", "biased", "eager"),
        ("llava", "thumbnail", "sdpa"),
        ("llava_siglip", "defaults", "eager"),
        ("vipllava", "biased", "sdpa"),
        ("llava_next", "defaults", "eager"),
    ],
)
@torch.no_grad()
def test_a_language_model_in_float64_gives_the_logits_of_float32(kind, settings, attention):
    model, processor = attached(kind, **SETTINGS[settings])
    model.set_attn_implementation(attention)
    inputs = ask(processor, PROMPTS, PICTURES)
    expected, said = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    model.double()
    logits = model(**inputs).logits
    assert logits.dtype == torch.float64
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[real].float(), expected[real], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(**inputs.to(torch.float64)).logits, logits)
    assert torch.equal(model.generate(**inputs, **GREEDY), said)


@pytest.mark.parametrize(("kind", "bias"), [("clip", 0.5), ("siglip", 0.5), ("dinov2", 0.0)])
@torch.no_grad()
def test_a_vision_model_in_float64_gives_the_features_of_float32(kind, bias):
    model, processor = qlip.attach(make_vision_model(kind), **TREE, size_bias=bias)
    inputs = processor.pack(PICTURES)
    expected = model(**inputs).last_hidden_state
    found = model.double()(**inputs).last_hidden_state
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_model_in_float64_is_asked_what_a_question_attends_to():
    model, processor = attached("llava", budget="question")
    expected = qlip.process_for_question(model, processor, PICTURES[3], PROMPTS[0])
    found = qlip.process_for_question(model.double(), processor, PICTURES[3], PROMPTS[0])
    assert torch.equal(found["leaf_boxes"], expected["leaf_boxes"])
