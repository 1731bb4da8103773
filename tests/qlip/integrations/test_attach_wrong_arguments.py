"""Errors of `qlip.attach` name a wrong model or processor and what is allowed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPModel, LlamaConfig, LlamaForCausalLM, pipeline

import qlip
from llava.model import LlavaConfig, LlavaLlamaForCausalLM
from tests.qlip.integrations.models import (
    TREE,
    attached,
    make_contrastive_model,
    make_language_model,
    make_processor,
    make_tokenizer,
    make_vision_model,
)

ALLOWED = "it must be one of LlavaForConditionalGeneration, .*CLIPModel, SiglipModel, or a vision model"
NARROW = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}


def in_a_pipeline():
    return pipeline("image-text-to-text", model=make_language_model("llava"), processor=make_processor("llava"))


def own_llava():
    with torch.device("meta"):
        return LlavaLlamaForCausalLM(LlavaConfig(**NARROW, vocab_size=99))


def text_model():
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**NARROW, vocab_size=99))


@pytest.mark.parametrize("act", [qlip.attach, qlip.detach])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: None, f"model is None; {ALLOWED}"),
        (lambda: "llava-hf/llava-1.5-7b-hf", f"model is 'llava-hf/llava-1.5-7b-hf'; {ALLOWED}.*; load it first"),
        (lambda: CLIPModel, f"model is <class '.*CLIPModel'>; {ALLOWED}.*; load it first"),
        (make_tokenizer, f"model is a .*Tokenizer.*; {ALLOWED}.*; the model comes first, then its processor"),
        (lambda: make_processor("llava"), "model is a LlavaProcessor; .*; the model comes first, then its processor"),
        (in_a_pipeline, "model is a ImageTextToTextPipeline; .*; give its attribute `model`"),
        (lambda: {"weight": torch.zeros(2)}, f"model is a dict; {ALLOWED}"),
    ],
    ids=["None", "a name", "a class", "a tokenizer", "a processor", "a pipeline", "a state dict"],
)
def test_what_is_no_model(act, make, message):
    with pytest.raises(TypeError, match=f"^{message}") as error:
        act(make())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (own_llava, r"LlavaLlamaForCausalLM is LLaVA's own class, .*load_pretrained_model\(\.\.\., qlip=True\)"),
        (text_model, "LlamaForCausalLM is none of CLIPVisionModel, .*: it takes text only"),
        (
            lambda: get_peft_model(make_language_model("llava"), LoraConfig(target_modules=["q_proj"])),
            r"is wrapped by PEFT; attach model\.get_base_model\(\)",
        ),
    ],
    ids=["LLaVA's own", "a text model", "PEFT"],
)
def test_models_that_are_switched_otherwise(make, message):
    with pytest.raises(TypeError, match=message) as error:
        qlip.attach(make())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "model",
    [
        lambda: make_language_model("llava"),
        lambda: make_contrastive_model("clip"),
        lambda: make_vision_model("dinov2"),
    ],
    ids=["language", "contrastive", "vision"],
)
@pytest.mark.parametrize(
    ("processor", "kind"),
    [
        (make_tokenizer, "a .*Tokenizer"),
        (lambda: "openai/clip", "'openai/clip'"),
        (lambda: SimpleNamespace(image_processor=3), "a int"),
        (lambda: len, "a builtin_function"),
    ],
    ids=["a tokenizer", "a name", "of something else", "a function"],
)
def test_what_is_no_processor(model, processor, kind):
    made = model()
    with pytest.raises(TypeError, match=rf"^processor is {kind}.*; it must be the model's processor \(AutoProcessor\)"):
        qlip.attach(made, processor())
    with pytest.raises(TypeError, match="is not attached"):
        qlip.detach(made)


@pytest.mark.parametrize("saved", [3, "yes", [0.5]], ids=str)
def test_a_configuration_whose_settings_are_none(saved):
    """They are not passed over: the defaults would be other settings than those that were meant."""
    model = make_vision_model("clip")
    model.config.qlip = saved
    with pytest.raises(TypeError, match="the QLIP settings are .*; they must be an object of settings by name"):
        qlip.attach(model)


def test_an_attached_model_is_attached_again_with_other_settings():
    model, processor = attached("llava", **TREE)
    again, other = qlip.attach(model, processor, alpha=0.9)
    assert again is model and again.attachment.vision.qlip.alpha == 0.9
    plain, _ = qlip.detach(again, other)
    with pytest.raises(TypeError, match="LlavaForConditionalGeneration is not attached"):
        qlip.detach(plain)
