"""Asks a model that was trained on tiles by its tiles, and by leaves in their places.

`python -m scripts.bench.tiles_accuracy` prints accuracy and tokens by way and kind of scene. The model is that of
`python -m playground.train --recipe tiles`, which has never seen a leaf.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.command import OneLineParser, integer, parse_and_run
from llava.utils import device_flag
from playground.presets import NAMED_PRESETS, TILED, SceneSpec
from playground.schedules import shipped_path
from qlip import QLIPConfig
from scripts.bench.evidence.answering.trees import STRUCTURE_BY_SCORE

if TYPE_CHECKING:
    from playground.examination import Score


def _tree(**settings: Any) -> QLIPConfig:
    """Builds QLIP's settings with the criterion and the order of splits in which the tables were measured."""
    return QLIPConfig(**{**STRUCTURE_BY_SCORE, **settings})


RANDOM: dict[str, Any] = {"criterion": "random", "alpha": 0.0}
WAYS: dict[str, QLIPConfig | bool] = {
    "anyres": False,
    "image, budget 64": _tree(max_tokens=64),
    "image, budget 128": _tree(max_tokens=128),
    "image, budget 256": _tree(max_tokens=256),
    "image and base, budget 128": _tree(max_tokens=128, thumbnail=True),
    "tiles, budget 128": _tree(max_tokens=128, tiling="tiles"),
    "tiles, budget 256": _tree(max_tokens=256, tiling="tiles"),
    "random leaves of the image, 128": _tree(**RANDOM, max_tokens=128),
    "random leaves of tiles, 128": _tree(**RANDOM, max_tokens=128, tiling="tiles"),
}
"""The model's own tiles, QLIP in their place, and leaves that split at random, of the same budgets."""
WHOLE: dict[str, Any] = {"alpha": 0.0, "max_tokens": None, "llm_size_bias": 0.0, "noise_floor": False}
CHANGES: dict[str, dict[str, Any]] = {
    "llm_size_bias 0": {"llm_size_bias": 0.0},
    "llm_size_bias -0.5": {"llm_size_bias": -0.5},
    "llm_size_bias -1": {"llm_size_bias": -1.0},
    "llm_weight native": {"llm_weight": "native"},
    "llm_positions sequential": {"llm_positions": "sequential"},
}
COUNTING: dict[str, QLIPConfig | bool] = {
    "anyres": False,
    "image at 224 px, whole grid, with base": _tree(**WHOLE, image_size=224, thumbnail=True),
    "image at 224 px, whole grid, no base": _tree(**WHOLE, image_size=224),
    "image at 448 px, whole grid, no base": _tree(**WHOLE, image_size=448),
    "image, budget 128": _tree(max_tokens=128),
    **{f"the same, {name}": _tree(max_tokens=128, **change) for name, change in CHANGES.items()},
    "image at 224 px, budget 128": _tree(max_tokens=128, image_size=224),
    "image at 224 px, budget 128, llm_size_bias 0": _tree(max_tokens=128, image_size=224, llm_size_bias=0.0),
}
"""What counting rests on: the base, the weights, or the positions of tokens."""
SCENES: dict[str, SceneSpec] = {
    "as in training": replace(TILED, photos="validation"),
    **{f"448 px, {size} px": NAMED_PRESETS[f"validation/size {size}"] for size in ("12-24", "24-48", "48-96")},
}
"""Pictures of 224 px with objects of 6-96 px, and larger ones by the size of their objects."""
COUNTED = ("448 px, 24-48 px", "448 px, 48-96 px")
"""Scenes of `COUNTING`: square, of objects that the base shows; the whole grid of a long one exceeds the context."""
SERIES = 7600
SHIPPED = shipped_path("tiles")
KINDS = ("count", "existence")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="tiles_accuracy", description="Ask a model of tiles by tiles and by leaves.")
    parser.add_argument("--model-path", type=Path, default=SHIPPED, help="of the recipe `tiles` (default: the shipped)")
    parser.add_argument("--scenes", type=integer(), default=100, help="of each kind (%(default)s)")
    parser.add_argument("--seed", type=integer(0), default=SERIES, help="series of scenes (%(default)s)")
    parser.add_argument("--counting", action="store_true", help="ask in the ways that show what counting rests on")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="NAME", help="; ".join(WAYS))
    parser.add_argument("--device", type=device_flag, help="default: the best device of this machine")
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Examines the model in each way and prints the table."""
    from llava.utils import default_device
    from playground.examination import Examinee, examination

    scenes = COUNTED if options.counting else tuple(SCENES)
    print(f"| seen by | {' | '.join(scenes)} |\n{'|---' * (1 + len(scenes))}|")
    exams = [examination(SCENES[name], options.seed, options.scenes) for name in scenes]
    ways = COUNTING if options.counting else {name: WAYS[name] for name in options.ways}
    for name, way in ways.items():
        examinee = Examinee.load(options.model_path, way, options.device or default_device())
        print(f"| {name} | {' | '.join(format_score(examinee.take(exam)) for exam in exams)} |", flush=True)


def format_score(score: Score) -> str:
    """Formats V*, counting and existence in %, and the mean tokens of a scene."""
    others = ", ".join(f"{100 * score.accuracy[kind]:.0f}" for kind in KINDS)
    return f"{100 * score.v_star:.1f}, {others} ({score.tokens:.0f})"


if __name__ == "__main__":
    sys.exit(main())
