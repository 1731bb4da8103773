"""Ways to few tokens: the quadtree at a budget, its controls, and rivals at equal tokens and at equal computation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from scripts.bench.evidence.answering.trees import BY_SCORE, GRID, UNIFORM
from scripts.bench.evidence.answering.variants import BEFORE, CLIP, SHIPPED, Variant

BUDGET = 96
"""Tokens of comparisons at equal cost: one and a half times those of the demo model's native grid."""
THUMBNAIL_32 = {"max_tokens": 32, "coarsest": "any", "thumbnail": True, "llm_size_bias": 0.0}
AVERAGES: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "": {"llm_size_bias": 0.0},
        ", logit bias": {"llm_size_bias": 1.0},
        ", logit bias, native weight": {"llm_size_bias": 1.0, "llm_weight": "native"},
    }
)
"""Averages over leaves, without and with the logarithm of a leaf's cells on its key's logits."""
CROP_TOKENS, TOME_TOKENS, PRUNING_TOKENS = 190, 388, 721
"""Budgets at which a quadtree takes about as many FLOPs as a two-pass crop, ToMe and pruning over 32 x 32 cells."""
ASKED_TOKENS = 130
"""The same of the question-aware budget, on objects of 12-24 px."""
SPENT: Mapping[str, object] = {"alpha": 0.0, "max_tokens": BUDGET, **BY_SCORE}
"""The whole budget, by score alone."""
BUDGETS = MappingProxyType({32: 6, 64: 8, BUDGET: 10, 144: 12, 256: 16})
"""Tokens, and the side in cells of the uniform grid that has about as many."""
SELECTED = (
    "quadtree",
    "quadtree, any coarsest",
    "resize to 10 x 10",
    "random quadtree",
    "native grid, 1024 tokens",
    "[CLS] pruning, raster",
    "[CLS] pruning, 57 of 11 x 11",
    "PruMerge, adaptive, raster",
    "PruMerge, adaptive, of 12 x 12",
    "ToMe merging, raster",
    "ToMe merging, 64 of 13 x 13",
    "leaves averaged after the tower, logit bias",
    "two-pass crop, raster",
)
"""Rivals that are asked what signs say, and for listings."""
PEERS = (
    "resize to 10 x 10",
    "random quadtree",
    "[CLS] pruning + merging, 57 of 11 x 11",
    "PruMerge, adaptive, of 12 x 12",
    "ToMe merging, 64 of 13 x 13",
    "thumbnail + quadtree of 32",
    "two-pass crop, raster",
    "[CLS] pruning + merging, raster",
    "ToMe merging, raster",
)
"""Rivals beside the shipped settings: six that compute as much as `BUDGET` tokens, three that cost more."""


def list_quadtrees() -> list[Variant]:
    """Lists CLIP, the quadtree at `BUDGET`, and its controls."""
    return [
        CLIP,
        Variant("quadtree", SPENT),
        Variant("quadtree, any coarsest", {**SPENT, "coarsest": "any"}),
        Variant("resize to 10 x 10", {**UNIFORM, "image_size": 140}),
        Variant("random quadtree", {**SPENT, "criterion": "random"}),
    ]


def list_rivals() -> list[Variant]:
    """Lists the quadtree at `BUDGET`, and rivals at as many tokens, whatever they compute."""
    ways = [
        *list_quadtrees(),
        Variant("native grid, 1024 tokens", UNIFORM),
        Variant("native grid, 1024 tokens, native weight", {**UNIFORM, "llm_weight": "native"}),
    ]
    for rival, name in (("cls", "[CLS] pruning"), ("cls+merge", "[CLS] pruning + merging"), ("tome", "ToMe merging")):
        for positions in ("raster", "sequential"):
            ways.append(Variant(f"{name}, {positions}", {"max_tokens": BUDGET, "llm_positions": positions}, rival))
    for positions in ("raster", "sequential"):
        ways.append(Variant(f"PruMerge, adaptive, {positions}", {"llm_positions": positions}, "prumerge"))
    for name, change in AVERAGES.items():
        ways.append(Variant(f"leaves averaged after the tower{name}", {**SPENT, **change}, "leaves"))
    ways += [Variant(f"two-pass crop, {name}", {"llm_positions": name}, "crop") for name in ("raster", "sequential")]
    ways.append(Variant("thumbnail + quadtree of 32", {**SPENT, **THUMBNAIL_32}))
    ways.append(Variant("thumbnail + native grid", {**UNIFORM, "thumbnail": True, "llm_weight": "native"}))
    return ways


def list_budgets() -> list[Variant]:
    """Lists ways to few tokens, half to four times the native number; up to the native number leaves may be larger."""
    ways = [CLIP]
    for tokens, side in BUDGETS.items():
        tree = {**SPENT, "max_tokens": tokens, "coarsest": "any" if tokens <= 64 else "native"}
        ways += [
            Variant(f"QLIP, {tokens}", tree),
            Variant(f"random quadtree, {tokens}", {**tree, "criterion": "random"}),
            Variant(f"resized, {tokens}", {**UNIFORM, "image_size": 14 * side}),
            Variant(f"[CLS] pruning, {tokens}", {"max_tokens": tokens, "llm_positions": "raster"}, "cls"),
        ]
        if tokens >= 64:  # a layer merges at most half of its tokens: from 1024 four layers get no lower
            ways.append(Variant(f"ToMe merging, {tokens}", {"max_tokens": tokens, "llm_positions": "raster"}, "tome"))
    return ways


def list_equal_flops() -> list[Variant]:
    """Lists ways that compute as much as the quadtree at `BUDGET`, for the embedded model.

    A rival that runs the tower over a whole grid gets a smaller picture: 11 to 13 cells a side instead of 32.
    """
    ways = [
        *list_quadtrees(),
        Variant("thumbnail + quadtree of 32", {**SPENT, **THUMBNAIL_32}),
    ]
    for rival, name in (("cls", "[CLS] pruning"), ("cls+merge", "[CLS] pruning + merging")):
        ways.append(Variant(f"{name}, 57 of 11 x 11", {"max_tokens": 57, "image_size": 154, **GRID}, rival))
    ways.append(Variant("PruMerge, adaptive, of 12 x 12", {"image_size": 168, **GRID}, "prumerge"))
    ways.append(Variant("ToMe merging, 64 of 13 x 13", {"max_tokens": 64, "image_size": 182, **GRID}, "tome"))
    for name, change in AVERAGES.items():
        settings = {"alpha": 0.0, "max_tokens": 57, "image_size": 154, "coarsest": "any", **GRID, **BY_SCORE, **change}
        ways.append(Variant(f"leaves averaged after the tower, 57 of 11 x 11{name}", settings, "leaves"))
    return ways


def list_dear_rivals() -> list[Variant]:
    """Lists rivals that cost more than the quadtree at `BUDGET`, each followed by a quadtree of about its cost."""
    weighted = {"alpha": 0.0, "llm_weight": "native", **BY_SCORE}
    return [
        Variant("question-aware", {"budget": "question"}),
        Variant("quadtree, about the cost of the question", {**weighted, "max_tokens": ASKED_TOKENS}),
        Variant("two-pass crop, raster", {"llm_positions": "raster"}, "crop"),
        Variant("quadtree, about the cost of the crop", {**weighted, "max_tokens": CROP_TOKENS}),
        Variant("ToMe merging, 96 of 32 x 32", {"max_tokens": BUDGET}, "tome"),
        Variant("quadtree, about the cost of ToMe", {**weighted, "max_tokens": TOME_TOKENS}),
        Variant("[CLS] pruning, 96 of 32 x 32", {"max_tokens": BUDGET}, "cls"),
        Variant("quadtree, about the cost of pruning", {**weighted, "max_tokens": PRUNING_TOKENS}),
    ]


def list_selected() -> list[Variant]:
    """Lists `BEFORE`, and rivals at `BUDGET` and at its FLOPs, for signs and listings."""
    return [CLIP, BEFORE, *_find_rivals(SELECTED)]


def list_peers() -> list[Variant]:
    """Lists the shipped settings, also with `BUDGET`, beside `PEERS`."""
    return [CLIP, SHIPPED, Variant(f"QLIP, budget {BUDGET}", {"max_tokens": BUDGET}), *_find_rivals(PEERS)]


def _find_rivals(names: Sequence[str]) -> list[Variant]:
    known = {way.name: way for way in (*list_rivals(), *list_equal_flops())}
    return [known[name] for name in names]
