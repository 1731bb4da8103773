"""The experiments: the rows of every table of docs/RESULTS.md.

Settings that are not named are the shipped ones, but for the criterion. It is that of `BEFORE`, in which the tables
were measured, except in "sizes", which has README's rows, "peers", "objects" and "page".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from types import MappingProxyType

import qlip.config
from scripts.bench.evidence.answering.rival_ways import (
    BUDGET,
    SPENT,
    list_budgets,
    list_dear_rivals,
    list_equal_flops,
    list_peers,
    list_rivals,
    list_selected,
)
from scripts.bench.evidence.answering.scene_sets import (
    BETWEEN,
    DETAIL_SET,
    GROUND_SETS,
    LISTING_SETS,
    MIXED,
    MIXED_SETS,
    SIZES,
)
from scripts.bench.evidence.answering.trees import BY_SCORE, IN_GRID, NATIVE, PAPER, STRUCTURE, UNIFORM
from scripts.bench.evidence.answering.variants import BEFORE, CLIP, SHIPPED, Variant

DETAIL_BIAS = -0.25
"""A negative `llm_size_bias`: small leaves, where the detail is, weigh more than large ones."""


SIGN_SETS = (f"{MIXED}signs 12-20 at 448",)


@dataclass(frozen=True)
class Experiment:
    """Ways to encode images, each examined on the same sets."""

    ways: Sequence[Variant]
    sets: Sequence[str]


def _positions(settings: Mapping[str, object]) -> list[Variant]:
    return [
        Variant("bicubic", {"interpolation": "bicubic", **settings}),
        Variant("bilinear", {"interpolation": "bilinear", **settings}),
        Variant("MLP, grid term", {"mlp_residual": False, **settings}, prior="grid"),
        Variant("MLP, grid term, + residual", {"mlp_residual": True, **settings}, prior="grid"),
        Variant("MLP, [CLS] term", {"mlp_residual": False, **settings}, prior="consistency"),
        Variant("MLP, [CLS] term, + residual", {"mlp_residual": True, **settings}, prior="consistency"),
        Variant("MLP, released training", {"mlp_residual": False, **settings}, prior="released"),
        Variant("scrambled reshape", settings, scrambled=True),
    ]


def _language_positions() -> list[Variant]:
    """Lists budgets of 1/4 to 16 times the native tokens; below these leaves may be larger than native cells."""
    ways = []
    for tokens in (16, 32, 64, 96, 128, 256, 512, 1024):
        coarsest = "any" if tokens < 64 else "native"
        budget = {"alpha": 0.0, "max_tokens": tokens, "coarsest": coarsest, "llm_size_bias": 0.0, **BY_SCORE}
        for name, change in (
            ("sequential", {"llm_positions": "sequential"}),
            ("raster", {"llm_positions": "raster"}),
            ("raster, native weight", {"llm_positions": "raster", "llm_weight": "native"}),
        ):
            ways.append(Variant(f"{name}, {tokens}", budget | change))
    return ways


def _criteria() -> list[Variant]:
    named: list[tuple[str, dict[str, int]]] = [("gradient", {}), ("variance", {}), ("diagonal", {}), ("random", {})]
    named += [("structure", {"structure_size": size}) for size in (5, 7, 9, 11)]
    ways = []
    for (criterion, extra), coarsest in product(named, ("any", "native")):
        window = f" {extra['structure_size']}" if extra else ""
        settings = {"criterion": criterion, **extra, "coarsest": coarsest, **SPENT}
        ways.append(Variant(f"{criterion}{window}, {coarsest}", settings))
    return ways


def _options() -> list[Variant]:
    changes: list[tuple[str, Mapping[str, object]]] = [
        ("thumbnail", {"thumbnail": True}),
        ("thumbnail, native weight", {"thumbnail": True, "llm_weight": "native"}),
        ("native weight", {"llm_weight": "native"}),
        ("size_bias 0.5", {"size_bias": 0.5}),
        ("size_bias 1", {"size_bias": 1.0}),
        ("llm_size_bias 0.5", {"llm_size_bias": 0.5}),
        ("llm_size_bias 1", {"llm_size_bias": 1.0}),
        ("both size biases 1", {"size_bias": 1.0, "llm_size_bias": 1.0}),
        ("llm_size_bias 1, native weight", {"llm_size_bias": 1.0, "llm_weight": "native"}),
        ("leaf_position mean", {"leaf_position": "mean"}),
        ("layout centered", {"layout": "centered"}),
        ("coarsest any", {"coarsest": "any"}),
        ("coarsest any, both size biases 1", {"coarsest": "any", "size_bias": 1.0, "llm_size_bias": 1.0}),
    ]
    return [CLIP, *_by_score(BEFORE, *(Variant(name, change) for name, change in changes))]


def _by_score(*ways: Variant) -> list[Variant]:
    return _lay_over(BY_SCORE, ways)


def _lay_over(settings: Mapping[str, object], ways: Sequence[Variant]) -> list[Variant]:
    """Lays the settings of each way over others; CLIP's has none."""
    return [way if way.settings is None else replace(way, settings={**settings, **way.settings}) for way in ways]


def _losses() -> list[Variant]:
    """Lists `BEFORE` beside the paper's rule and a thumbnail."""
    return [
        CLIP,
        BEFORE,
        *_by_score(
            Variant("paper's rule, alpha 1, budget 256", {**PAPER, "alpha": 1.0, "max_tokens": 256}),
            Variant("thumbnail", {"thumbnail": True}),
        ),
    ]


def _paper() -> list[Variant]:
    """Lists `BEFORE`, and `QLIPConfig.paper()` and the authors' code's rule with values of their alpha."""
    ways = [CLIP, BEFORE]
    for alpha in (0.1, 0.4, 1.0):
        ways.append(Variant(f"QLIPConfig.paper(alpha={alpha})", {**qlip.config.PAPER, "alpha": alpha}))
    authors = {**qlip.config.PAPER, "criterion": "diagonal", "layout": "centered"}
    return [*ways, *(Variant(f"the authors' rule, alpha {alpha}", {**authors, "alpha": alpha}) for alpha in (0.1, 0.4))]


def _weights() -> list[Variant]:
    """Lists weights of small leaves in the attention of the tower, and in that of the language model."""
    pairs = [(-0.1, -0.25), (-0.15, -0.15), (-0.2, -0.25), (-0.25, 0.0), (-0.25, -0.1), (-0.3, -0.15)]
    pairs += [(-0.4, 0.0), (-0.4, -0.1), (-0.6, 0.0), (-0.8, 0.0)]
    return [
        BEFORE,
        *(Variant(f"{own}, {other}", {"size_bias": own, "llm_size_bias": other}) for own, other in pairs),
    ]


def _split_cells() -> list[Variant]:
    """Lists what split cells are worth in the tower's sequence, by weights of small leaves."""
    ways = [CLIP, BEFORE]
    for bias in (0.0, -0.4):
        ways.append(Variant(f"split cells kept, {bias}", {"keep_split_cells": True, "size_bias": bias}))
    return [*ways, Variant("-0.4", {"size_bias": -0.4})]


def _counting() -> list[Variant]:
    ways = [BEFORE]
    for bias in (0.25, 0.0, -0.1, -0.25, -0.35, -0.5):
        ways.append(Variant(f"llm_size_bias {bias}", {"llm_size_bias": bias}))
    for change in ({"size_bias": -0.25}, {"llm_weight": "native"}, {"llm_positions": "sequential"}):
        ((name, value),) = change.items()
        ways.append(Variant(f"{name} {value}", change))
    ways.append(Variant("budget 80", {"max_tokens": 80}))
    for size in (3, 9):
        ways.append(Variant(f"window {size}", {"structure_size": size}))
    return [CLIP, *_by_score(*ways)]


def _geometry() -> list[Variant]:
    """Lists the steps from the paper's geometry to the native one."""
    steps: list[tuple[str, Mapping[str, object]]] = [
        ("grid", IN_GRID),
        ("grid, noise floor", {"geometry": "grid", "leaf_position": "centre", "noise_floor": True}),
        ("native", {"geometry": "native", "leaf_position": "centre", "noise_floor": False}),
        ("native, native positions", {**NATIVE, "noise_floor": False}),
        ("native, native positions, noise floor", NATIVE),
        ("native, native positions, noise floor, padded", {**NATIVE, "placement": "padded"}),
    ]
    return [CLIP, *(Variant(name, {**change, **BY_SCORE}) for name, change in steps)]


def _resized() -> list[Variant]:
    """Lists the shipped settings on pictures resized to each size of the native geometry."""
    return [CLIP, *(Variant(f"{side} px", {"image_size": side, **BY_SCORE}) for side in (112, 224, 448, 896, 1792))]


def _choice() -> list[Variant]:
    """Lists candidates for the defaults, those that were shipped before the choice among them."""
    earlier = {"structure_size": 5, "alpha": 0.8, "max_tokens": 128, "llm_size_bias": DETAIL_BIAS}
    earlier |= {**IN_GRID, **BY_SCORE}
    ways = [CLIP, Variant("the paper's geometry, structure 5, alpha 0.8, budget 128, llm_size_bias -0.25", earlier)]
    for size, alpha, tokens, bias in product((5, 7), (0.8, 1.2, 1.6), (96, 128), (0.0, DETAIL_BIAS)):
        window = {"structure_size": size, "alpha": alpha}
        settings = {**window, "max_tokens": tokens, "llm_size_bias": bias, **NATIVE, **BY_SCORE}
        ways.append(Variant(f"structure {size}, alpha {alpha}, budget {tokens}, llm_size_bias {bias}", settings))
    return ways


def _order() -> list[Variant]:
    """Lists the orders in which a budget splits, at 1.5 times and twice the native tokens; then by side at fewer."""
    ways = [CLIP]
    for order, tokens in product(("score", "side"), (BUDGET, 128)):
        ways.append(Variant(f"{order}, {tokens}", {"split_order": order, "max_tokens": tokens}))
    for tokens in (76, 84):
        ways.append(Variant(f"side, {tokens}", {"split_order": "side", "max_tokens": tokens}))
    return ways


def _objects() -> list[Variant]:
    """Lists windows of criterion "objects", what was shipped before, and what attention can do besides, to compare."""
    before = {**STRUCTURE, "alpha": 0.8, "max_tokens": 128}
    ways = [CLIP, Variant("structure 5, alpha 0.8, budget 128", before)]
    for size in (5, 7):
        window = {"criterion": "objects", "structure_size": size, "alpha": 0.8}
        ways.append(Variant(f"objects {size}, alpha 0.8, budget 128", {**window, "max_tokens": 128}))
    chosen, tower = dict(ways[-1].settings), {"size_bias": -0.4, "llm_size_bias": 0.0}
    for name, change in {
        "size_bias -0.4, llm_size_bias 0": tower,
        "split cells kept": {"keep_split_cells": True},
        "split cells kept, size_bias -0.4, llm_size_bias 0": {"keep_split_cells": True, **tower},
    }.items():
        ways.append(Variant(f"objects 7, {name}", {**chosen, **change}))
    return ways


def _page() -> list[Variant]:
    """Lists what the chart of the web page shows: the shipped settings, and smaller budgets."""
    return [CLIP, *(Variant(f"budget {tokens}", {"max_tokens": tokens}) for tokens in (16, 32, 48, 64, 80, 96, 128))]


DETAIL_AND_LARGE = (DETAIL_SET, "large")
BY_SIZE = ("base", *SIZES, "noise 20")
MEASURED = {
    "positions": Experiment(_positions({}), DETAIL_AND_LARGE),
    "enlarged": Experiment(_positions({**UNIFORM, "image_size": 224}), ("base",)),
    "llm-positions": Experiment(_language_positions(), (DETAIL_SET,)),
    "criteria": Experiment(_criteria(), DETAIL_AND_LARGE),
    "rivals": Experiment(list_rivals(), DETAIL_AND_LARGE),
    "budgets": Experiment(list_budgets(), (DETAIL_SET,)),
    "equal-flops": Experiment(list_equal_flops(), (*BY_SIZE, *GROUND_SETS)),
    "dear-rivals": Experiment(list_dear_rivals(), DETAIL_AND_LARGE),
    "reading": Experiment(list_selected(), SIGN_SETS),
    "listing": Experiment(list_selected(), tuple(LISTING_SETS)),
    "options": Experiment(_options(), ("base", *DETAIL_AND_LARGE)),
    "losses": Experiment(_losses(), (*BY_SIZE, "noise 40")),
    "paper": Experiment(_paper(), (*BY_SIZE, "noise 40")),
    "counting": Experiment(_counting(), ("base", *DETAIL_AND_LARGE)),
    "geometry": Experiment(_geometry(), (*BY_SIZE, "noise 40", f"{MIXED}aspect any", f"{MIXED}ground photo")),
    "between": Experiment(_resized(), tuple(BETWEEN)),
    "choice": Experiment(_choice(), MIXED_SETS),
    "order": Experiment(_order(), MIXED_SETS),
    "weights": Experiment(_weights(), MIXED_SETS),
    "split cells": Experiment(_split_cells(), MIXED_SETS),
}
"""Measured while the criterion of `BEFORE` was shipped."""


EXPERIMENTS = MappingProxyType(
    {
        **{name: replace(each, ways=_lay_over(STRUCTURE, each.ways)) for name, each in MEASURED.items()},
        "sizes": Experiment([CLIP, SHIPPED, BEFORE], (*BY_SIZE, "noise 40")),
        "peers": Experiment(list_peers(), (*BY_SIZE, f"{MIXED}ground photo")),
        "objects": Experiment(_objects(), MIXED_SETS),
        "page": Experiment(_page(), (DETAIL_SET,)),
    }
)
