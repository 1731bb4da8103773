"""What is compared with what: the rows of every table of docs/RESULTS.md. Settings not named are the shipped ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType

from scripts.bench.evidence.sets import DETAIL_SET, SCENE_SETS, SIZES
from scripts.bench.evidence.ways import Way

CLIP = Way("CLIP", None)
SHIPPED = Way("QLIP as shipped")
BUDGET = 96
"""Tokens of comparisons at equal cost: one and a half times those of the demo model's native grid."""
UNIFORM = {"alpha": 0.0, "max_tokens": None}
PAPER = {"criterion": "gradient", "coarsest": "any", "thumbnail": False}


@dataclass(frozen=True)
class Experiment:
    """Ways of seeing, each examined on the same sets."""

    ways: Sequence[Way]
    sets: Sequence[str]


def _positions() -> list[Way]:
    ways = [
        Way("bicubic", {"interpolation": "bicubic"}),
        Way("bilinear", {"interpolation": "bilinear"}),
        Way("MLP, grid term", {"mlp_residual": False}, prior="grid"),
        Way("MLP, grid term, + residual", {"mlp_residual": True}, prior="grid"),
        Way("MLP, [CLS] term", {"mlp_residual": False}, prior="consistency"),
        Way("MLP, [CLS] term, + residual", {"mlp_residual": True}, prior="consistency"),
        Way("scrambled reshape", {}, scrambled=True),
    ]
    uniform = {**UNIFORM, "image_size": 224}
    enlarged = [Way(f"16 x 16 grid, {w.name}", {**w.settings, **uniform}, w.rival, w.prior, w.scrambled) for w in ways]
    return ways + enlarged


def _language_positions() -> list[Way]:
    """From a quarter to sixteen times the native number of tokens; below it leaves may be larger than native cells."""
    ways = []
    for tokens in (16, 32, 64, 96, 128, 256, 512, 1024):
        budget = {"alpha": 0.0, "max_tokens": tokens, "coarsest": "any" if tokens < 64 else "native"}
        for name, change in (
            ("sequential", {"llm_positions": "sequential"}),
            ("raster", {"llm_positions": "raster"}),
            ("raster, native weight", {"llm_positions": "raster", "llm_weight": "native"}),
        ):
            ways.append(Way(f"{name}, {tokens}", budget | change))
    return ways


def _criteria() -> list[Way]:
    named = [("gradient", {}), ("variance", {}), ("diagonal", {}), ("random", {})]
    named += [("structure", {"structure_size": size}) for size in (5, 7, 9, 11)]
    ways = []
    for (criterion, extra), coarsest in product(named, ("any", "native")):
        window = f" {extra['structure_size']}" if extra else ""
        settings = {"criterion": criterion, **extra, "coarsest": coarsest, "alpha": 0.0, "max_tokens": BUDGET}
        ways.append(Way(f"{criterion}{window}, {coarsest}", settings))
    return ways


def _rivals() -> list[Way]:
    budget = {"alpha": 0.0, "max_tokens": BUDGET}
    ways = [
        CLIP,
        Way("quadtree", budget),
        Way("quadtree, any coarsest", {**budget, "coarsest": "any"}),
        Way("resize to 10 x 10", {**UNIFORM, "image_size": 140}),
        Way("random quadtree", {**budget, "criterion": "random"}),
        Way("native grid, 1024 tokens", UNIFORM),
        Way("native grid, 1024 tokens, native weight", {**UNIFORM, "llm_weight": "native"}),
    ]
    for rival, name in (("cls", "[CLS] pruning"), ("cls+merge", "[CLS] pruning + merging"), ("tome", "ToMe merging")):
        for positions in ("raster", "sequential"):
            ways.append(Way(f"{name}, {positions}", {"max_tokens": BUDGET, "llm_positions": positions}, rival))
    return ways


def _options() -> list[Way]:
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
    return [CLIP, SHIPPED, *(Way(name, change) for name, change in changes)]


def _losses() -> list[Way]:
    return [
        CLIP,
        SHIPPED,
        Way("paper's rule, alpha 1, budget 256", {**PAPER, "alpha": 1.0, "max_tokens": 256}),
        Way("thumbnail", {"thumbnail": True}),
    ]


def _counting() -> list[Way]:
    ways = [CLIP, SHIPPED]
    for tokens in (72, 80, 88, 128):
        ways.append(Way(f"budget {tokens}", {"max_tokens": tokens}))
    for size in (3, 5, 7, 9):
        ways.append(Way(f"window {size}", {"structure_size": size}))
    for alpha in (0.3, 1.2):
        ways.append(Way(f"alpha {alpha}", {"alpha": alpha}))
    return ways


def _defaults() -> list[Way]:
    """Candidates for settings that need no sweep, CLIP and the paper's rule among them."""
    ways = [CLIP]
    for alpha, tokens in product((0.5, 1.0), (96, 128)):
        ways.append(
            Way(f"paper's rule, alpha {alpha}, budget {tokens}", {**PAPER, "alpha": alpha, "max_tokens": tokens})
        )
    floor = {"coarsest": "native"}
    for alpha, tokens in product((0.5, 1.0), (96, 128)):
        settings = {"criterion": "gradient", "alpha": alpha, "max_tokens": tokens, **floor}
        ways.append(Way(f"gradient, alpha {alpha}, budget {tokens}", settings))
    for size, alpha, tokens in product((3, 5, 7), (0.4, 0.8, 1.2), (96, 128)):
        settings = {"criterion": "structure", "structure_size": size, "alpha": alpha, "max_tokens": tokens, **floor}
        ways.append(Way(f"structure {size}, alpha {alpha}, budget {tokens}", settings))
    for criterion in ("gradient", "structure"):
        settings = {"criterion": criterion, "alpha": 0.3, "max_tokens": 32, "coarsest": "any", "thumbnail": True}
        ways.append(Way(f"thumbnail and {criterion}, budget 32", settings))
    for size in (224, 336, 448):
        ways.append(Way(f"image size {size}", {"image_size": size}))
    return ways


DETAIL_AND_LARGE = (DETAIL_SET, "large")
EXPERIMENTS = MappingProxyType(
    {
        "positions": Experiment(_positions(), ("base", *DETAIL_AND_LARGE)),
        "llm-positions": Experiment(_language_positions(), (DETAIL_SET,)),
        "criteria": Experiment(_criteria(), DETAIL_AND_LARGE),
        "rivals": Experiment(_rivals(), DETAIL_AND_LARGE),
        "options": Experiment(_options(), ("base", *DETAIL_AND_LARGE)),
        "losses": Experiment(_losses(), tuple(SCENE_SETS)),
        "counting": Experiment(_counting(), ("base", *DETAIL_AND_LARGE)),
        "defaults": Experiment(_defaults(), ("base", *(f"{low}-{high} px" for low, high in SIZES), "noise 20")),
    }
)
