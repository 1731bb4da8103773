"""Compares the model that was trained as LLaVA is with the recipe `joint`: `python -m scripts.bench.evidence.trained`.

Their answers come from `python -m scripts.bench.evidence.run --experiments geometry --split test --model
trained=playground/llava-text-demo joint=playground/llava-demo`. Fills the table of docs/results/trained.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava.command import OneLineParser, parse_and_run
from scripts.bench.evidence.answer_log import ANSWERS_FILE
from scripts.bench.evidence.checkpoints import trained_path
from scripts.bench.evidence.claims import MEASURES
from scripts.bench.evidence.experiments import CLIP, EXPERIMENTS, NATIVE
from scripts.bench.evidence.report import fill_page
from scripts.bench.evidence.scene_sets import MIXED, SPLITS
from scripts.bench.evidence.settings import Way
from scripts.bench.evidence.tables import Answers, Cell, interval

PAGE = Path("docs/results/trained.md")
WAYS: Mapping[str, Way] = {
    "CLIP": CLIP,
    "QLIP, the paper's geometry": next(way for way in EXPERIMENTS["geometry"].ways if way.name == "grid"),
    "QLIP": Way("QLIP", NATIVE),
}
MODELS: Mapping[str, str] = {"trained": "as LLaVA is", "joint": "`joint`"}
"""Names in the answers, and in the table."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="trained", description="Compare the model that was trained as LLaVA is.")
    parser.add_argument("--answers-files", type=Path, nargs="+", default=[ANSWERS_FILE], help="files that `run` wrote")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--model-path", default=trained_path(), help="checkpoint with the shipped settings")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the mark to fill (%(default)s)")
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Fills the page.

    Raises:
        FileNotFoundError: a file of answers is missing.
        ValueError: an answer is missing.
    """
    from llava.eval.sweep.grid import read_own_settings

    answers = Answers(options.answers_files, options.split, read_own_settings(options.model_path))
    fill_page(options.page, {"trained": compare(answers)})


def compare(answers: Answers) -> str:
    """Formats V*, counting and existence of both models, on every set, by CLIP and by two kinds of trees.

    Raises:
        ValueError: a cell or one of the models is missing.
    """
    columns = [f"{measure}, {label}" for label in MODELS.values() for measure in MEASURES]
    lines = [f"| scenes | seen by | tokens | {' | '.join(columns)} |", "|---" * (3 + len(columns)) + "|"]
    for name in EXPERIMENTS["geometry"].sets:
        for label, way in WAYS.items():
            cell = answers.cell(way, name)
            by_model = {} if cell is None else {row["model"]: Cell([row]) for row in cell.rows}
            if missing := MODELS.keys() - by_model:
                raise ValueError(f"no answers of {min(missing)!r} to {name!r} seen by {way.name!r}; run them first")
            shares = [interval(by_model[model].accuracy(kinds)) for model in MODELS for kinds in MEASURES.values()]
            scenes = name.removeprefix(MIXED) if way is CLIP else ""
            lines.append(f"| {scenes} | {label} | {by_model['trained'].tokens:.1f} | {' | '.join(shares)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
