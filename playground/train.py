"""Trains the models of this repository: `python -m playground.train --out DIR`.

`--recipe llava`, which made the embedded model, trains a language model on text alone and a tower on pictures with
captions, and joins them by LLaVA's two stages, run by `llava.train`: the projector on captions, projector and language
model on conversations. `--recipe joint` trains the decoder on symbols and the tower on cells apart, then all parts
on questions at once. `--recipe tiles` trains the shipped result on, in LLaVA-1.6's format: on tiles (anyres). Progress
is saved in DIR; a run that was stopped continues. The first two stages of the first two recipes are independent:
`--stages language` and `--stages vision` may run side by side.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OneLineParser, integer, parse_and_run, real
from playground.schedules import RECIPES, SCENES, TrainingConfig

STAGES = tuple(dict.fromkeys(stage for stages in RECIPES.values() for stage in stages))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="train", description="Train the small models of this repository.")
    parser.add_argument("--out", type=Path, required=True, help="folder for scenes, progress and the checkpoint")
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        default="llava",
        help="llava: language model on text, tower on pictures, then llava.train's two stages on captions and"
        " conversations (made the embedded model); joint: decoder, tower, then all parts at once; tiles: the"
        " shipped checkpoint of joint on tiles, by llava.train (default: %(default)s)",
    )
    parser.add_argument("--seed", type=integer(0), default=0)
    parser.add_argument("--threads", type=integer(), default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--steps-scale", type=real(above=True), default=1.0, help="multiplies the steps of every stage")
    parser.add_argument(
        "--workers",
        type=integer(0),
        help="processes that draw batches ahead (default: all CPU cores but two beside a GPU, else none)",
    )
    parser.add_argument("--scenes", type=integer(), help="most training scenes (default: the recipe's)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, help="stages to run (default: all of the recipe)")
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Trains as the flags say."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    import torch

    torch.set_num_threads(options.threads)
    config = TrainingConfig(
        out=options.out,
        seed=options.seed,
        workers=default_workers() if options.workers is None else options.workers,
        scenes=options.scenes or SCENES[options.recipe],
        steps_scale=options.steps_scale,
        stages=tuple(options.stages or RECIPES[options.recipe]),
    )
    if options.recipe == "joint":
        from playground.trainer import train

        train(config)
    elif options.recipe == "tiles":
        from playground.tiles import train_on_tiles

        train_on_tiles(config)
    else:
        from playground.recipe import train_llava

        train_llava(config)
    for file in sorted(options.out.glob("llava-*/config.json")):  # once the last stage has run
        print(f"{file.parent}: the checkpoint")


def default_workers() -> int:
    """Chooses how many processes draw batches.

    With one, a GPU has to wait; two CPU cores gain nothing from a second.
    """
    import torch

    return max(1, (os.cpu_count() or 1) - 2) if torch.cuda.is_available() else 0


if __name__ == "__main__":
    sys.exit(main())
