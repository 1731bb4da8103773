"""The benchmark of tiles: LLaVA-1.6's counts, what the tower runs over, and the sizes of 7B."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from qlip import QLIPConfig
from scripts.bench import tiles

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("settings", "tokens", "patches"),
    [
        (None, 2340, [576] * 5),  # LLaVA's own count
        (QLIPConfig(max_tokens=None, alpha=0), 48 * 36 + 36, [48 * 36]),  # twice CLIP's 24 cells, and newlines
        (QLIPConfig(max_tokens=None, alpha=0, thumbnail=True), 576 + 48 * 36 + 36, [48 * 36, 576]),
        (QLIPConfig(max_tokens=None, alpha=0, tiling="tiles"), 2340, [576] * 5),
    ],
    ids=["anyres", "image", "image and base", "tiles"],
)
def test_tokens_and_sequences_of_a_picture(settings, tokens, patches):
    ready = tiles.prepare(NOISE, settings)
    assert (ready.tokens, tiles.patches_of(ready)) == (tokens, patches)


def test_the_sizes_are_those_of_7b():
    cost = tiles.llava_7b()
    with torch.device("meta"):
        layer = LlamaDecoderLayer(LlamaConfig(), 0)
    assert cost.layer.projections == sum(p.numel() for p in layer.self_attn.parameters())
    assert cost.layer.mlp == sum(p.numel() for p in layer.mlp.parameters())


def test_tables_are_shares_of_anyres():
    stages = {"prepare": 1.0, "tower": 2.0, "prefill": 5.0}
    halves = {way: {stage: seconds / 2 for stage, seconds in stages.items()} for way in tiles.WAYS}
    assert "| image | 0.062 | 0.125 | 0.312 | 0.50 |" in tiles.times_table({**halves, "anyres": stages})
    counts = {"a": {way: (100.0, 5e12) for way in tiles.WAYS} | {"anyres": (200.0, 1e13)}}
    assert tiles.operations_table(counts).endswith("| a | 10.0 TFLOP | 0.50 | 0.50 | 0.50 | 0.50 | 0.50 |")
    assert tiles.tokens_table(counts).endswith("| a | 200 | 100 | 100 | 100 | 100 | 100 |")
