"""Compares the model that was trained as LLaVA is with the recipe `joint`: `python -m scripts.bench.evidence.trained`.

Their answers come from `python -m scripts.bench.evidence.run --experiments geometry --split test --model
trained=playground/llava-demo trained-2=... trained-3=... joint=playground/llava-joint-demo`: three seeds of the one
recipe, one of the other. Fills the table of docs/results/trained.md; `--recipes` compares others, under a `--mark`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava.command import OneLineParser, parse_and_run
from scripts.bench.evidence.answering.answers import Answers, Cell
from scripts.bench.evidence.answering.experiments import EXPERIMENTS
from scripts.bench.evidence.answering.flags import add_answers_flags, add_published_split_flag, read_answers
from scripts.bench.evidence.answering.scene_sets import MIXED
from scripts.bench.evidence.answering.variants import CLIP, Variant
from scripts.bench.evidence.pages.fill import fill_page
from scripts.bench.evidence.pages.tables import describe

PAGE = Path("docs/results/trained.md")
GEOMETRIES = {way.name: way for way in EXPERIMENTS["geometry"].ways}
WAYS: Mapping[str, Variant] = {
    "CLIP": CLIP,
    "QLIP, the paper's geometry": GEOMETRIES["grid"],
    "QLIP": GEOMETRIES["native, native positions, noise floor"],
}
Recipes = Mapping[str, Sequence[str]]
"""Label in the table -> names of the recipe's seeds in the answers."""
MODELS: Recipes = {
    "as LLaVA is": ("trained", "trained-2", "trained-3"),
    "`joint`": ("joint",),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="trained", description="Compare the model that was trained as LLaVA is.")
    add_answers_flags(parser)
    add_published_split_flag(parser)
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the mark to fill (%(default)s)")
    parser.add_argument("--mark", default="trained", help="the table's mark in the page (%(default)s)")
    parser.add_argument(
        "--recipes", nargs="+", type=read_recipe, metavar="LABEL=MODEL[,MODEL]", help="names of answers to compare"
    )
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Fills the page.

    Raises:
        FileNotFoundError: a file of answers is missing.
        ValueError: an answer is missing.
    """
    answers = read_answers(options)
    recipes = dict(options.recipes) if options.recipes else MODELS
    fill_page(options.page, {options.mark: compare(answers, recipes)}, partly=True)
    print(f"filled {options.page}")


def read_recipe(text: str) -> tuple[str, list[str]]:
    """Reads a flag's LABEL=MODEL[,MODEL]."""
    label, equals, models = text.partition("=")
    if not (label and equals and all(models.split(","))):
        raise argparse.ArgumentTypeError(f"{text!r} is not LABEL=MODEL[,MODEL]")
    return label, models.split(",")


def compare(answers: Answers, models: Recipes = MODELS) -> str:
    """Formats V*, counting and existence by each recipe, on every set, by CLIP and by two kinds of trees.

    Where a recipe has several seeds, their answers are pooled, and V* of each is beside.

    Raises:
        ValueError: a cell or one of the models is missing.
    """
    columns = []
    for label, seeds in models.items():
        columns += [f"V*, {label}", *(["of each seed"] if len(seeds) > 1 else []), f"count, {label}"]
        columns.append(f"existence, {label}")
    lines = [f"| scenes | seen by | tokens | {' | '.join(columns)} |", "|---" * (3 + len(columns)) + "|"]
    for name in EXPERIMENTS["geometry"].sets:
        for label, way in WAYS.items():
            by_model = {} if (cell := answers.cell(way, name)) is None else {row["model"]: row for row in cell.rows}
            if missing := {model for seeds in models.values() for model in seeds} - by_model.keys():
                raise ValueError(f"no answers of {min(missing)!r} to {name!r} seen by {way.name!r}; run them first")
            recipes = [Cell([by_model[model] for model in seeds]) for seeds in models.values()]
            shares = [text for recipe in recipes for text in describe(recipe)]
            scenes = name.removeprefix(MIXED) if way is CLIP else ""
            lines.append(f"| {scenes} | {label} | {recipes[0].tokens:.1f} | {' | '.join(shares)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
