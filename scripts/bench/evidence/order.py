"""Compares the orders in which a budget splits: `python -m scripts.bench.evidence.order --answers-files F`.

`python -m scripts.bench.evidence.run --experiments order` answers first. Fills the tables of docs/results/order.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import OneLineParser, integer, parse_and_run
from scripts.bench.evidence.answering.answers import Answers
from scripts.bench.evidence.answering.experiments import EXPERIMENTS
from scripts.bench.evidence.answering.flags import add_answers_flags, add_split_flag, read_answers
from scripts.bench.evidence.answering.variants import CLIP
from scripts.bench.evidence.pages.comparison import COLUMNS, average, compare_ways
from scripts.bench.evidence.pages.fill import fill_page
from scripts.markdown_table import table_head, table_row

if TYPE_CHECKING:
    import argparse

PAGE = Path("docs/results/order.md")
ORDERS = ("score", "side")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="order", description="Compare the orders in which a budget splits.")
    add_answers_flags(parser)
    add_split_flag(parser)
    parser.add_argument("--budget", type=integer(), default=128, help="tokens (%(default)s)")
    parser.add_argument("--budgets", action="store_true", help="fill the table of all budgets, means over the sets")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the mark to fill (%(default)s)")
    parser.add_argument("--mark", help='the table\'s mark in the page (default: such as "order: validation, 128")')
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Fills the page's table of a split and budget."""
    answers = read_answers(options)
    mark = options.mark or f"order: {options.split}, {'budgets' if options.budgets else options.budget}"
    text = summarise(answers) if options.budgets else compare(answers, options.budget)
    fill_page(options.page, {mark: text}, partly=True)
    print(f"filled {options.page}, {mark}")


def compare(answers: Answers, budget: int) -> str:
    """Formats each set's accuracy by CLIP, by score and by side; see `compare_ways`."""
    experiment = EXPERIMENTS["order"]
    ways = [CLIP, *(way for way in experiment.ways if way.name in [f"{order}, {budget}" for order in ORDERS])]
    return compare_ways(answers, ways, experiment.sets, "side - score")


def summarise(answers: Answers) -> str:
    """Formats the means over the sets by every way, of the checkpoints that were asked in all.

    Raises:
        ValueError: a set lacks answers.
    """
    experiment = EXPERIMENTS["order"]
    lines = [table_head(["order, budget", "tokens", *COLUMNS])]
    for way, row in zip(experiment.ways, answers.compare(experiment.ways, experiment.sets), strict=True):
        cells = [cell for cell in row if cell]
        if len(cells) < len(row):
            raise ValueError(f"there are no answers to {len(row) - len(cells)} of the sets by {way.name!r}")
        lines.append(table_row([way.name, *average(cells)]))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
