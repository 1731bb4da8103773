"""Rows that tests make: answers of experiments, and claims."""

from __future__ import annotations

from dataclasses import replace

from qlip import QLIPConfig
from scripts.bench.evidence.answering.scene_sets import KINDS
from scripts.bench.evidence.answering.variants import Variant
from scripts.bench.evidence.claims.published import Claim, claimed_ways


def answer_row(way: Variant, model: str, right: dict[str, str], name: str = "base", tokens: int = 64) -> dict:
    count = len(right["colour"])
    pictures = {kind: list(range(count)) for kind in right}
    return {
        "model": model, "split": "test", "set": name, "scenes": count, "way": way.key(QLIPConfig()),
        "right": right, "pictures": pictures, "tokens": [tokens] * count, "flops": [2_500_000_000] * count,
        "seconds": 0.0,
    }  # fmt: skip


def claim(**changes: object) -> Claim:
    made = Claim(
        "base, CLIP: count", "base", "CLIP", "count", 64.0, 90.0, 85.0, 95.0, 1, (10, 90), "run", 9500, "2026-01-01"
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def claimed_row(way: str, model: str, right: str) -> dict:
    return {
        "model": model, "split": "series 7", "set": "base", "way": claimed_ways()[way].key(QLIPConfig(max_tokens=128)),
        "scenes": len(right), "right": dict.fromkeys(KINDS, right),
        "pictures": dict.fromkeys(KINDS, list(range(len(right)))), "tokens": [64] * len(right), "seconds": 0.0,
    }  # fmt: skip
