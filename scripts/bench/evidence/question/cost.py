"""Floating-point operations of LLaVA-1.5-7B before an answer, in one pass or two; computed, not timed."""

from __future__ import annotations

NATIVE = 576
"""Tokens of CLIP ViT-L/14-336's grid."""
TEXT = 55
"""Tokens of LLaVA's prompt with a short question."""
TOWER_LAYERS, TOWER_WIDTH = 23, 1024  # up to the layer that LLaVA reads
LAYERS, WIDTH, INNER = 32, 4096, 11008


def prefill_flops(share: float, first_share: float = 0.0) -> float:
    """Computes the operations of tower and language model for one image and a short question.

    Products alone: two operations for each multiplication with its addition. The first pass ends below the middle
    layer, whose projections are left out as they are small.

    Args:
        share: tokens of the image, as a share of CLIP's.
        first_share: those of the first pass; 0 for none.
    """
    first = 0.0 if first_share == 0 else _pass(first_share * NATIVE, LAYERS // 2)
    return first + _pass(share * NATIVE, LAYERS)


def _pass(tokens: float, layers: int) -> float:
    tower = TOWER_LAYERS * (24 * TOWER_WIDTH**2 * tokens + 4 * TOWER_WIDTH * tokens**2)
    prompt = tokens + TEXT
    weights = 4 * WIDTH**2 + 3 * WIDTH * INNER
    return tower + layers * (2 * weights * prompt + 2 * WIDTH * prompt**2)  # causal: half of all pairs
