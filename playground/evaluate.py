"""Measures a checkpoint on held-out scenes: `python -m playground.evaluate`.

Accuracy by kind of question and kind of scene, and visual tokens, for four ways to encode them: CLIP's (downsized),
QLIP as shipped, the uniform grid at native size, and random cells as many as QLIP's. It drives the model as any client
does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llava.command import OneLineParser, integer, parse_and_run
from llava.utils import demo_model_path, device_flag
from playground.dialogue import DIALOGUE_KINDS
from playground.presets import NAMED_PRESETS
from playground.questions import KINDS
from qlip import QLIPConfig

if TYPE_CHECKING:
    from playground.examination import Examination, Score

METHODS = ("clip", "qlip", "uniform", "random")
SHOWN_PRESETS = ("base", "detail-smooth", "detail-textured", "large")


def compare(
    model_path: str,
    exam: Examination,
    methods: Sequence[str],
    shipped: QLIPConfig,
    device: str,
    first: str | None = None,
) -> dict[str, Score]:
    """Examines the checkpoint with each of `methods`; `first` is a question that is asked first, and not judged."""
    from playground.examination import Examinee

    scores: dict[str, Score] = {}
    for method in sorted(methods, key=METHODS.index):
        if method == "random" and "qlip" not in scores:
            raise ValueError("random sees as many cells as qlip: evaluate both")
        settings: QLIPConfig | bool = False
        if method == "qlip":
            settings = shipped
        elif method == "uniform":
            settings = QLIPConfig(alpha=0.0, max_tokens=None)
        elif method == "random":
            leaves = scores["qlip"].tokens - (64 if shipped.thumbnail else 0)
            settings = replace(shipped, criterion="random", alpha=0.0, max_tokens=round(leaves))
        scores[method] = Examinee.load(model_path, settings, device).take(exam, first)
    return scores


def shipped_settings(model_path: str, changes: dict[str, Any]) -> QLIPConfig:
    """Reads the checkpoint's QLIP settings and replaces those in `changes`."""
    from llava.eval.sweep.grid import read_own_settings

    return QLIPConfig.from_dict(read_own_settings(model_path).to_dict() | changes)


def settings_text(text: str) -> dict[str, Any]:
    """Parses settings given as a JSON object, for argparse's `type`."""
    try:
        settings = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise argparse.ArgumentTypeError(f"""{text!r} is not allowed; it must be a JSON object: '{{"alpha": 0.5}}'""")
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="evaluate", description="Measure the demo model on held-out scenes.")
    parser.add_argument("--model-path", default=str(demo_model_path()), help="folder of the checkpoint")
    parser.add_argument("--seed", type=integer(0), default=9000, help="of the scenes; those below 100 are for training")
    parser.add_argument(
        "--n", type=integer(), default=100, help="scenes of each preset, with one question of each kind"
    )
    parser.add_argument(
        "--presets",
        nargs="+",
        choices=NAMED_PRESETS,
        default=SHOWN_PRESETS,
        metavar="NAME",
        help="such as base, detail, 'validation/size 12-24' or 'test/signs 8-12 at 448' (default: four of them)",
    )
    parser.add_argument("--first", metavar="TEXT", help="ask this first, in the same conversation")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--qlip", type=settings_text, default={}, help="settings instead of the checkpoint's, as JSON")
    parser.add_argument("--device", type=device_flag, help="default: the best device of this machine")
    return parse_and_run(parser, run, argv)


def run(options: argparse.Namespace) -> None:
    """Measures every preset and method and prints a table."""
    from llava.utils import default_device
    from playground.examination import examination

    device = options.device or default_device()
    shipped = shipped_settings(options.model_path, options.qlip)
    kinds = DIALOGUE_KINDS if any(NAMED_PRESETS[name].sign_share > 0 for name in options.presets) else KINDS
    width = max(16, 1 + max(len(name) for name in options.presets))
    print(f"{'scenes':{width}}{'seen by':9}{'tokens':>7}{'V*':>7}" + "".join(f"{kind:>11}" for kind in kinds))
    for preset in options.presets:
        exam = examination(NAMED_PRESETS[preset], options.seed, options.n)
        scores = compare(options.model_path, exam, options.methods, shipped, device, options.first)
        for method, score in scores.items():
            shares = "".join(
                f"{100 * score.accuracy[kind]:11.1f}" if kind in score.accuracy else f"{'-':>11}" for kind in kinds
            )
            print(f"{preset:{width}}{method:9}{score.tokens:7.1f}{100 * score.v_star:7.1f}{shares}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
