"""Attention masks of all forms that transformers takes, for a prompt with images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import qlip
from tests.qlip.integrations.models import NATIVE, TREE, ask, attached, make_language_model, make_processor, picture

PROMPT = ["see <image> now"]


def causal(length: int) -> Tensor:
    """bool (1, 1, T, T), as a caller makes who masks by himself."""
    return torch.ones(1, 1, length, length, dtype=torch.bool).tril()


def additive(length: int) -> Tensor:
    return torch.zeros(1, 1, length, length).masked_fill(~causal(length), torch.finfo(torch.float32).min)


@torch.no_grad()
@pytest.mark.parametrize("make", [causal, additive])
@pytest.mark.parametrize("kind", ["llava", "vipllava"])
def test_a_mask_over_queries_and_keys_is_that_of_the_model_itself(kind: str, make: Any) -> None:
    inputs = ask(make_processor(kind), PROMPT, [picture(NATIVE, NATIVE)])
    inputs["attention_mask"] = make(inputs["input_ids"].shape[1])
    expected = make_language_model(kind)(**inputs).logits
    model, processor = qlip.attach(make_language_model(kind), make_processor(kind), alpha=0.0, max_tokens=None)
    inputs = {**ask(processor, PROMPT, [picture(NATIVE, NATIVE)]), "attention_mask": inputs["attention_mask"]}
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("make", [causal, additive])
@pytest.mark.parametrize("bias", [0.0, -0.5])
def test_leaves_are_placed_and_weighed_under_it_as_under_a_mask_of_padding(make: Any, bias: float) -> None:
    model, processor = attached("llava", **{**TREE, "llm_size_bias": bias})
    inputs = ask(processor, PROMPT, [picture(112, 168)])
    expected = model(**inputs).logits
    inputs["attention_mask"] = make(inputs["input_ids"].shape[1])
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("call", ["__call__", "generate"])
def test_prompts_and_masks_of_other_shapes_are_named(call: str) -> None:
    model, processor = attached("llava", **TREE)
    inputs = ask(processor, PROMPT, [picture(112, 168)])
    length = inputs["input_ids"].shape[1]
    short = {**inputs, "attention_mask": inputs["attention_mask"][:, 1:]}
    words = rf"input_ids are \(1, {length}\), attention_mask \(1, {length - 1}\); both must be \(prompts, tokens\)"
    with pytest.raises(ValueError, match=words):
        getattr(model, call)(**short)
    flat = {**inputs, "input_ids": inputs["input_ids"][0], "attention_mask": None}
    with pytest.raises(ValueError, match=rf"input_ids are \({length},\), .* must be \(prompts, tokens\)"):
        getattr(model, call)(**flat)
