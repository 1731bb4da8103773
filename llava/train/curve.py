"""Draws the losses of training runs: `python -m llava.train.curve RUN [RUN ...] --out loss.svg`.

A run's log is the `trainer_state.json` that it writes at its end and in every checkpoint. Each run gets a panel.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.command import OneLineParser, parse_and_run

if TYPE_CHECKING:
    from qlip.tools.plots import Curve, Panel

STATE_FILE = "trainer_state.json"
MAX_POINTS = 40
"""Points of a curve; of more steps, a point is the mean of as many in a row as needed."""


@dataclass(frozen=True)
class LossLog:
    """The losses that a run has logged, with their steps."""

    name: str
    training: list[tuple[int, float]]
    evaluation: list[tuple[int, float]]


def read_log(run: Path) -> LossLog:
    """Reads a run's losses.

    Args:
        run: its output folder, finished or not; or a `trainer_state.json`.

    Raises:
        FileNotFoundError: there is no `trainer_state.json`.
        ValueError: the file is not one, or holds no loss.
    """
    file = find_state(run) if run.is_dir() else run
    try:
        history: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["log_history"]
        training, evaluation = (
            [(int(entry["step"]), float(entry[name])) for entry in history if name in entry]
            for name in ("loss", "eval_loss")
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not a {STATE_FILE} of a training run: {type(error).__name__} {error}") from error
    if not training and not evaluation:
        raise ValueError(f"{file} holds no loss; train with --logging_steps at most the number of steps")
    return LossLog(run.resolve().name if run.is_dir() else file.resolve().parent.name, training, evaluation)


def find_state(run: Path) -> Path:
    """Finds the newest `trainer_state.json` of a run: that of its end, else that of its last checkpoint.

    Raises:
        FileNotFoundError: it has written none.
    """
    from llava.train.saving import checkpoints

    if (final := run / STATE_FILE).is_file():
        return final
    for folder in reversed(checkpoints(run)):
        if (file := folder / STATE_FILE).is_file():
            return file
    raise FileNotFoundError(f"{run} has no {STATE_FILE}, nor a checkpoint with one; give a folder that a run wrote to")


def make_panel(log: LossLog) -> Panel:
    """Builds the panel of a run."""
    from qlip.tools.plots import Panel

    named = (("training", log.training), ("evaluation", log.evaluation))
    return Panel([make_curve(name, points) for name, points in named if points], "step", "loss", log.name)


def make_curve(name: str, points: Sequence[tuple[int, float]], most: int = MAX_POINTS) -> Curve:
    """Builds a curve of at most `most` points: means of windows, with the least and greatest loss as its interval."""
    import numpy as np

    from qlip.tools.plots import Curve

    width = math.ceil(len(points) / most)
    table = np.array(points, dtype=np.float64)
    windows = [table[start : start + width] for start in range(0, len(table), width)]
    means = [window.mean(axis=0) for window in windows]
    band = width > 1
    return Curve(
        name,
        [float(step) for step, _ in means],
        [float(loss) for _, loss in means],
        [float(window[:, 1].min()) for window in windows] if band else None,
        [float(window[:, 1].max()) for window in windows] if band else None,
    )


def draw_losses(runs: Sequence[Path], out: Path) -> None:
    """Draws the losses of some runs side by side into an SVG or PNG file."""
    from qlip.tools.plots import plot_panels

    plot_panels(out, [[make_panel(read_log(run)) for run in runs]])


def command(args: argparse.Namespace) -> None:
    """Draws what the flags say."""
    draw_losses(args.runs, args.out)
    print(args.out)


def make_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command's flags."""
    parser = OneLineParser(prog="curve", description="Draw the losses of training runs.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help=f"output folder of a run, or a {STATE_FILE}")
    parser.add_argument("--out", type=Path, required=True, help="figure to write, .svg or .png")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    return parse_and_run(make_parser(), command, argv)


if __name__ == "__main__":
    sys.exit(main())
