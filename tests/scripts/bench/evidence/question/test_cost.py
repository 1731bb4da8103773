"""Floating-point operations of one pass or two, against PyTorch's own count."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaModel

from scripts.bench.cost_models import CLIP_LARGE, VICUNA_7B
from scripts.bench.evidence.question.cost import LAYERS, NATIVE, TEXT, WIDTH, prefill_flops


def counted(build: Callable[[int], torch.nn.Module], layers: int, **inputs: torch.Tensor) -> int:
    """Counts the operations of a model of equal layers by those of one layer and of two."""
    found = []
    for number in (1, 2):
        with FlopCounterMode(display=False) as counter:
            build(number)(**inputs)
        found.append(counter.get_total_flops())
    return found[0] + (layers - 1) * (found[1] - found[0])


def build_tower(layers: int) -> CLIPVisionModel:
    return CLIPVisionModel(CLIPVisionConfig(**{**CLIP_LARGE, "num_hidden_layers": layers}))


def build_language_model(layers: int) -> LlamaModel:
    model = LlamaModel(LlamaConfig(**{**VICUNA_7B, "num_hidden_layers": layers}))
    model.embed_tokens = None
    return model


def test_the_operations_of_a_pass_are_those_that_pytorch_counts():
    with torch.device("meta"):
        seen = counted(build_tower, 23, pixel_values=torch.zeros(1, 3, 336, 336))
        length = NATIVE + TEXT
        read = counted(build_language_model, LAYERS, inputs_embeds=torch.zeros(1, length, WIDTH))
    half = LAYERS * 2 * WIDTH * length**2  # it counts the pairs that a causal mask leaves out
    assert prefill_flops(1.0) == pytest.approx(seen + read - half, rel=0.002)  # [CLS], and the patches' own product


def test_a_first_pass_costs_half_of_the_language_model():
    first = prefill_flops(1.0, 1.0) - prefill_flops(1.0)
    assert 0.5 < first / prefill_flops(1.0) < 0.54
