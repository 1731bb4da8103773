"""Compares towers with and without split cells: `python -m scripts.bench.evidence.split_cells --answers-files F`.

`python -m scripts.bench.evidence.run --experiments "split cells"` answers first. Fills the tables of
docs/results/split-cells.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import OneLineParser, parse_and_run
from scripts.bench.evidence.answering.experiments import EXPERIMENTS
from scripts.bench.evidence.answering.flags import add_answers_flags, add_split_flag, read_answers
from scripts.bench.evidence.answering.variants import BEFORE, CLIP
from scripts.bench.evidence.pages.comparison import compare_ways
from scripts.bench.evidence.pages.fill import fill_page

if TYPE_CHECKING:
    import argparse

PAGE = Path("docs/results/split-cells.md")
WITHOUT = {"0.0": BEFORE.name, "-0.4": "-0.4"}
"""The way without split cells, by the size bias that both ways have."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="split_cells", description="Compare towers with and without split cells.")
    add_answers_flags(parser)
    add_split_flag(parser)
    parser.add_argument("--size-bias", choices=WITHOUT, default="0.0", help="of both ways (%(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the mark to fill (%(default)s)")
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Fills the page's table of a split and size bias."""
    experiment, bias = EXPERIMENTS["split cells"], options.size_bias
    ways = {way.name: way for way in experiment.ways}
    answers = read_answers(options)
    chosen = [CLIP, ways[WITHOUT[bias]], ways[f"split cells kept, {bias}"]]
    mark = f"split cells: {options.split}, {bias}"
    fill_page(options.page, {mark: compare_ways(answers, chosen, experiment.sets, "kept - without")}, partly=True)
    print(f"filled {options.page}, {mark}")


if __name__ == "__main__":
    sys.exit(main())
