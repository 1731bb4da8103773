"""Reports how the model that was trained as LLaVA is answers: `python -m scripts.bench.evidence.trained`.

Its answers come from `python -m scripts.bench.evidence.run --experiments geometry --split test --model
text=playground/llava-text-demo --answers-file FILE`. The table of docs/results/trained.md and README's first table are
written between their marks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OneLineParser, parse_and_run
from llava.utils import demo_model_path
from scripts.bench.evidence.answer_log import ANSWERS_FILE
from scripts.bench.evidence.claim_tables import SCENES
from scripts.bench.evidence.claims import MEASURES
from scripts.bench.evidence.experiments import CLIP, EXPERIMENTS, SHIPPED
from scripts.bench.evidence.report import fill
from scripts.bench.evidence.scene_sets import SPLITS
from scripts.bench.evidence.settings import Way
from scripts.bench.evidence.tables import Answers, Cell, interval

PAGES = (Path("docs/results/trained.md"), Path("README.md"))
NATIVE = next(way for way in EXPERIMENTS["geometry"].ways if way.name == "native, native positions, noise floor")
HEADLINE = tuple(SCENES)
"""Sets of README's table."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="trained", description="Report the model that was trained as LLaVA is.")
    parser.add_argument("--answers-files", type=Path, nargs="+", default=[ANSWERS_FILE], help="files that `run` wrote")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--model-path", default=Path(demo_model_path()).parent / "llava-text-demo", help="its settings")
    parser.add_argument("--pages", type=Path, nargs="+", default=PAGES, help="pages with the marks to fill")
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Fills the marks of the pages.

    Raises:
        FileNotFoundError: a file of answers is missing.
        ValueError: an answer is missing.
    """
    from llava.eval.sweep.grid import read_own_settings

    answers = Answers(options.answers_files, options.split, read_own_settings(options.model_path))
    parts = {"trained": whole_table(answers), "trained: headline": headline_table(answers)}
    for page in options.pages:
        page.write_text(fill(page.read_text(encoding="utf-8"), parts, partly=True), encoding="utf-8")


def whole_table(answers: Answers) -> str:
    """Formats V*, counting and existence with their intervals, on every set, by CLIP and two kinds of trees."""
    ways = {"CLIP": CLIP, "QLIP, the default settings": SHIPPED, "QLIP, native geometry, noise floor": NATIVE}
    lines = [f"| scenes | seen by | tokens | {' | '.join(MEASURES)} |", "|---" * (3 + len(MEASURES)) + "|"]
    for name in EXPERIMENTS["geometry"].sets:
        for label, way in ways.items():
            cell = find_cell(answers, way, name)
            shares = " | ".join(interval(cell.accuracy(kinds)) for kinds in MEASURES.values())
            scenes = name.removeprefix("mixed/") if way is CLIP else ""
            lines.append(f"| {scenes} | {label} | {cell.tokens:.1f} | {shares} |")
    return "\n".join(lines)


def headline_table(answers: Answers) -> str:
    """Formats README's table: CLIP and the default settings; V* is bold where its interval is above CLIP's."""
    lines = [f"| scenes | seen by | tokens | {' | '.join(MEASURES)} |", "|---" * (3 + len(MEASURES)) + "|"]
    for name in HEADLINE:
        clip, tree = (find_cell(answers, way, name) for way in (CLIP, SHIPPED))
        better = tree.accuracy(MEASURES["V*"]).low > clip.accuracy(MEASURES["V*"]).high
        for cell, label, scenes in ((clip, "CLIP", f" {SCENES[name]}"), (tree, "QLIP", "")):
            values = [f"{cell.share(kinds):.1f}" for kinds in MEASURES.values()]
            if better and cell is tree:
                label, values[0] = f"**{label}**", f"**{values[0]}**"
            lines.append(f"|{scenes} | {label} | {cell.tokens:.0f} | {' | '.join(values)} |")
    return "\n".join(lines)


def find_cell(answers: Answers, way: Way, name: str) -> Cell:
    """Finds the answers to a set.

    Raises:
        ValueError: there are none.
    """
    if (cell := answers.cell(way, name)) is None:
        raise ValueError(f"no answers to {name!r} seen by {way.name!r}; run them first")
    return cell


if __name__ == "__main__":
    sys.exit(main())
