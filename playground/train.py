"""Trains the embedded demo model: `python -m playground.train --out DIR`.

Three stages, each a fixed number of steps with a warm-up and a cosine: the decoder on symbols, the tower on cells,
then all parts on questions. Progress is saved in DIR; a run that was stopped continues and ends with the same weights.
The first two stages are independent: `--stages decoder` and `--stages tower` may run side by side.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OneLineParser, integer, parse_and_run, real
from playground.schedules import SCHEDULES, TrainingConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="train", description="Train the embedded demo model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for scenes, progress and the checkpoint")
    parser.add_argument("--seed", type=integer(0), default=0)
    parser.add_argument("--threads", type=integer(), default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--steps-scale", type=real(above=True), default=1.0, help="multiplies the steps of every stage")
    parser.add_argument("--scenes", type=integer(), default=60_000, help="number of training scenes")
    parser.add_argument("--stages", nargs="+", choices=SCHEDULES, default=list(SCHEDULES), help="stages to run")
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Trains as the flags say."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    import torch

    from playground.trainer import train

    torch.set_num_threads(options.threads)
    train(
        TrainingConfig(
            out=options.out,
            seed=options.seed,
            scenes=options.scenes,
            steps_scale=options.steps_scale,
            stages=tuple(options.stages),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
