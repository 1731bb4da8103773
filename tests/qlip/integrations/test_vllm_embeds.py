"""Embeddings for vLLM have the documented shapes and are what the language model would read. No vLLM runs here."""

from __future__ import annotations

import logging

import pytest
import torch

import qlip
from tests.qlip.integrations.models import (
    IMAGE_TOKEN,
    WIDTH,
    make_language_model,
    make_processor,
    make_vision_model,
    picture,
)

PICTURES = [picture(56, 56, 0), picture(112, 168, 1), picture(140, 98, 2)]
SETTINGS = {"alpha": 0.3, "llm_positions": "sequential", "llm_size_bias": 0.0}


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
@torch.no_grad()
def test_embeddings_are_those_that_the_language_model_would_read(kind):
    """vLLM replaces <image> by them and counts positions on; so do transformers' own inputs_embeds."""
    model, processor = qlip.attach(make_language_model(kind), make_processor(kind), **SETTINGS)
    embeds = qlip.vllm_image_embeds(model, PICTURES, batch_size=2)
    assert [tuple(image.shape[1:]) for image in embeds] == [(WIDTH,)] * 3
    assert len({len(image) for image in embeds}) == 3
    prompt = "<image> and <image> and <image>?"
    inputs = processor(images=PICTURES, text=[prompt], return_tensors="pt")
    assert int((inputs["input_ids"] == IMAGE_TOKEN).sum()) == sum(map(len, embeds))
    text = [
        model.get_input_embeddings()(processor.tokenizer(t, return_tensors="pt").input_ids)[0] for t in (" and ", "?")
    ]
    joined = torch.cat([embeds[0], text[0], embeds[1], text[0], embeds[2], text[1]])[None]
    untouched, _ = qlip.detach(model, processor)
    expected = untouched(inputs_embeds=joined).logits
    model, processor = qlip.attach(untouched, make_processor(kind), **SETTINGS)
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-4, rtol=0)


def test_a_warning_names_what_vllm_cannot_follow(caplog):
    model, _ = qlip.attach(make_language_model("llava"), llm_weight="native")
    with caplog.at_level(logging.WARNING):
        qlip.vllm_image_embeds(model, PICTURES[:1])
    assert "can't follow llm_positions='raster', llm_size_bias=-0.25, llm_weight='native'" in caplog.text
    caplog.clear()
    model, _ = qlip.attach(model, **SETTINGS, llm_weight="each", budget="question")
    qlip.vllm_image_embeds(model, PICTURES[:1])
    assert "can't follow budget='question'" in caplog.text
    caplog.clear()
    qlip.vllm_image_embeds(qlip.attach(model, **SETTINGS, budget="score")[0], PICTURES[:1])
    assert caplog.text == ""


def test_other_models_are_refused():
    attached, _ = qlip.attach(make_language_model("llava"), **SETTINGS)
    with pytest.raises(ValueError, match="batch_size is -1"):
        qlip.vllm_image_embeds(attached, PICTURES[:1], batch_size=-1)
    with pytest.raises(TypeError, match="LlavaForConditionalGeneration is not an attached LLaVA model"):
        qlip.vllm_image_embeds(make_language_model("llava"), PICTURES[:1])
    with pytest.raises(TypeError, match="CLIPVisionModel is not an attached LLaVA model"):
        qlip.vllm_image_embeds(qlip.attach(make_vision_model("clip"))[0], PICTURES[:1])
