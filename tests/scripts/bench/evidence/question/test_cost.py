"""Floating-point operations of one pass or two, against PyTorch's own count."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaModel

from scripts.bench.cost_models import CLIP_LARGE, VICUNA_7B
from scripts.bench.evidence.question.cost import LAYERS, NATIVE, TEXT, WIDTH, prefill_flops


def counted(model: torch.nn.Module, **inputs: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops()


def test_the_operations_of_a_pass_are_those_that_pytorch_counts():
    with torch.device("meta"):
        tower = CLIPVisionModel(CLIPVisionConfig(**{**CLIP_LARGE, "num_hidden_layers": 23}))
        language = LlamaModel(LlamaConfig(**VICUNA_7B))
        language.embed_tokens = None
        seen = counted(tower, pixel_values=torch.zeros(1, 3, 336, 336))
        length = NATIVE + TEXT
        read = counted(language, inputs_embeds=torch.zeros(1, length, WIDTH))
    half = LAYERS * 2 * WIDTH * length**2  # it counts the pairs that a causal mask leaves out
    assert prefill_flops(1.0) == pytest.approx(seen + read - half, rel=0.002)  # [CLS], and the patches' own product


def test_a_first_pass_costs_half_of_the_language_model():
    first = prefill_flops(1.0, 1.0) - prefill_flops(1.0)
    assert 0.5 < first / prefill_flops(1.0) < 0.54
