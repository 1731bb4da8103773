"""LLaVA on Mistral against transformers' Llava with a Mistral inside: same weights, same logits, same answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration
from transformers import LlavaConfig as TransformersLlavaConfig

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model import LlavaMistralConfig, LlavaMistralForCausalLM
from tests.llava.checkpoints import IMAGE_TOKEN, TEXT, VISION, llava_state

MISTRAL = {**TEXT, "num_key_value_heads": 2, "sliding_window": None}
PIXELS = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
PROMPT = [1, 20, IMAGE_TOKEN_INDEX, 30, 31, IMAGE_TOKEN_INDEX, 32]
LONG = [token for i in PROMPT for token in ([IMAGE_TOKEN] * 64 if i == IMAGE_TOKEN_INDEX else [i])]
NATIVE_TREE = {"alpha": 0.0, "max_tokens": None}


@pytest.fixture(scope="module", params=[None, 40], ids=["whole context", "window of 40"])
def window(request) -> int | None:
    return request.param


@pytest.fixture(scope="module")
def theirs(window):
    text = {"model_type": "mistral", **MISTRAL, "sliding_window": window}
    config = TransformersLlavaConfig(
        vision_config=VISION, text_config=text, image_token_index=IMAGE_TOKEN, image_seq_length=64
    )
    model = LlavaForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def make_ours(theirs, window, **settings) -> LlavaMistralForCausalLM:
    config = LlavaMistralConfig(
        **{**MISTRAL, "sliding_window": window},
        mm_vision_config=VISION,
        mm_projector_type="mlp2x_gelu",
        mm_hidden_size=64,
        **settings,
    )
    model = LlavaMistralForCausalLM(config).eval()
    model.load_state_dict(llava_state(theirs))
    return model


@pytest.mark.parametrize("qlip", [None, NATIVE_TREE], ids=["clip", "qlip at the native grid"])
@torch.no_grad()
def test_logits_and_greedy_answer_equal_transformers(theirs, window, qlip):
    ours = make_ours(theirs, window, qlip=qlip)
    long = torch.tensor([LONG])
    inputs = {"input_ids": long, "pixel_values": PIXELS, "attention_mask": torch.ones_like(long)}
    expected = theirs(**inputs).logits
    torch.testing.assert_close(ours(torch.tensor([PROMPT]), images=PIXELS).logits, expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.05
    options = {"do_sample": False, "max_new_tokens": 8}
    answer = theirs.generate(**inputs, **options)
    assert torch.equal(ours.generate(torch.tensor([PROMPT]), images=PIXELS, **options), answer[:, len(LONG) :])


@torch.no_grad()
def test_a_saved_checkpoint_has_llavas_names_and_loads_by_the_auto_classes(theirs, window, tmp_path: Path):
    ours = make_ours(theirs, window)
    ours.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(llava_state(theirs))
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is LlavaMistralForCausalLM
    expected = ours(torch.tensor([PROMPT]), images=PIXELS).logits
    torch.testing.assert_close(again(torch.tensor([PROMPT]), images=PIXELS).logits, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_bias_on_image_tokens_and_a_window_do_not_go_together(theirs, window):
    biased = {"criterion": "gradient", "coarsest": "any", "alpha": 0.7, "max_tokens": None, "llm_size_bias": 1.0}
    ours = make_ours(theirs, window, qlip=biased)
    flat = torch.zeros(1, 3, 112, 112)  # few large leaves
    if window is None:
        assert ours(torch.tensor([[1, IMAGE_TOKEN_INDEX]]), images=flat).logits.isfinite().all()
        return
    with pytest.raises(ValueError, match="attends to a window of 40 tokens, which does not allow a bias"):
        ours(torch.tensor([[1, IMAGE_TOKEN_INDEX]]), images=flat)
