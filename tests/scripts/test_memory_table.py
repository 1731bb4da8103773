"""scripts/memory_table.py: bytes as counted by hand, and as a loaded model and its cache have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llava.model.builder import load_pretrained_model
from llava.utils import demo_model_path
from scripts.memory_table import CLIP_L, Tower, cache_bytes, make_table, projector_parameters, weight_bytes
from scripts.training_memory import MODELS, TOWER_PARAMETERS, Llama

SEVEN, THIRTEEN = MODELS
DEMO = Llama("embedded", width=160, inner=432, layers=4, heads=5, vocabulary=704)
DEMO_TOWER = Tower(width=160, inner=640, layers=6, grid=8)
PAGE = (Path(__file__).parents[2] / "docs" / "MEMORY.md").read_text(encoding="utf-8")


def stored_bytes(model: nn.Module) -> int:
    """The bytes of a model's weights, with bitsandbytes' scales where there are some."""
    size = 0
    for weight in model.parameters():
        size += weight.untyped_storage().nbytes()
        if (scales := getattr(weight, "SCB", None)) is not None:
            size += scales.untyped_storage().nbytes()
    return size


def load(**options: Any) -> nn.Module:
    return load_pretrained_model(demo_model_path(), device="cpu", qlip=False, **options)[1]


def test_parameters_are_the_published_ones() -> None:
    """Llama 2 has 6 738 415 616 and 13 015 864 320 weights; LLaVA-1.5's projectors 20 979 712 and 31 467 520."""
    assert [model.parameters for model in MODELS] == [6_738_415_616, 13_015_864_320]
    assert CLIP_L.parameters == TOWER_PARAMETERS
    assert [projector_parameters(model, CLIP_L) for model in MODELS] == [20_979_712, 31_467_520]


def test_keys_and_values_by_hand() -> None:
    """7B: 2 x 32 layers x 4096 x 2 bytes, half a MiB a token. 13B: 2 x 40 x 5120 x 2."""
    assert cache_bytes(SEVEN, 1) == 2**19
    assert cache_bytes(THIRTEEN, 576) == 576 * 819_200
    assert cache_bytes(SEVEN, 10, "float32") == 2 * cache_bytes(SEVEN, 10)


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_weights_are_the_bytes_of_a_loaded_model(kind: str) -> None:
    assert weight_bytes(DEMO, kind, DEMO_TOWER) == stored_bytes(load(torch_dtype=kind))


def test_eight_bits_are_the_bytes_of_a_loaded_model() -> None:
    assert weight_bytes(DEMO, "8 bits", DEMO_TOWER) == stored_bytes(load(load_8bit=True))


@torch.inference_mode()
def test_a_cache_has_the_computed_bytes() -> None:
    model = load(torch_dtype="float32")
    cache = model(torch.arange(3, 13)[None], use_cache=True).past_key_values
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kept == cache_bytes(DEMO, 10, "float32")


def test_the_page_has_the_table_that_the_script_computes() -> None:
    assert make_table(512, 1) in PAGE
