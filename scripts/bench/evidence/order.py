"""Compares the orders in which a budget splits: `python -m scripts.bench.evidence.order --answers-files F`.

`python -m scripts.bench.evidence.run --experiments order` answers first. Fills the tables of docs/results/order.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from llava.command import OneLineParser, integer, parse_and_run
from llava.utils import demo_model_path
from scripts.bench.evidence.answering.answer_log import ANSWERS_FILE
from scripts.bench.evidence.answering.answers import Answers, Cell, difference
from scripts.bench.evidence.answering.experiments import EXPERIMENTS
from scripts.bench.evidence.answering.flags import known_split
from scripts.bench.evidence.answering.scene_sets import MEASURES, MIXED
from scripts.bench.evidence.answering.variants import CLIP, Variant
from scripts.bench.evidence.pages.fill import fill_page
from scripts.bench.evidence.pages.tables import interval
from scripts.markdown_table import join_values, table_head, table_row

if TYPE_CHECKING:
    import argparse

PAGE = Path("docs/results/order.md")
ORDERS = ("score", "side")
COLUMNS = {**MEASURES, "signs": ("sign",)}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="order", description="Compare the orders in which a budget splits.")
    parser.add_argument("--answers-files", type=Path, nargs="+", default=[ANSWERS_FILE], help="files that `run` wrote")
    parser.add_argument("--split", type=known_split, default="validation", help="the split to take (%(default)s)")
    parser.add_argument("--budget", type=integer(), default=128, help="tokens (%(default)s)")
    parser.add_argument("--budgets", action="store_true", help="fill the table of all budgets, means over the sets")
    parser.add_argument("--model-path", default=demo_model_path(), help="checkpoint with the shipped settings")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the mark to fill (%(default)s)")
    parser.add_argument("--mark", help='the table\'s mark in the page (default: such as "order: validation, 128")')
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Fills the page's table of a split and budget."""
    from llava.eval.sweep.grid import read_own_settings

    answers = Answers(options.answers_files, options.split, read_own_settings(options.model_path))
    mark = options.mark or f"order: {options.split}, {'budgets' if options.budgets else options.budget}"
    text = summarise(answers) if options.budgets else compare(answers, options.budget)
    fill_page(options.page, {mark: text}, partly=True)
    print(f"filled {options.page}, {mark}")


def compare(answers: Answers, budget: int) -> str:
    """Formats each set's accuracy by CLIP, by score and by side; see `compare_ways`."""
    experiment = EXPERIMENTS["order"]
    ways = [CLIP, *(way for way in experiment.ways if way.name in [f"{order}, {budget}" for order in ORDERS])]
    return compare_ways(answers, ways, experiment.sets, "side - score")


def compare_ways(answers: Answers, ways: Sequence[Variant], sets: Sequence[str], change: str) -> str:
    """Formats each set's accuracy by CLIP and two ways; checkpoints are taken together.

    Args:
        answers: of a split.
        ways: CLIP and the two.
        sets: names of the sets.
        change: the name of the difference between the third way and the second.

    Raises:
        ValueError: a set lacks answers.
    """
    cells = dict(zip(sets, zip(*answers.compare(ways, sets), strict=True), strict=True))
    lines = [table_head(["scenes", "tokens", *COLUMNS, change, "by checkpoint"])]
    means: dict[str, list[list[float]]] = {name: [] for name in COLUMNS}
    differences = []
    for name, row in cells.items():
        if any(cell is None for cell in row):
            raise ValueError(f"there are no answers to {name!r} in all of {', '.join(way.name for way in ways)}")
        known = [cell for cell in row if cell]
        shares = {column: find_shares(known, kinds) for column, kinds in COLUMNS.items()}
        for column, values in shares.items():
            means[column] += [values] if values else []
        models = sorted(entry["model"] for entry in known[-1].rows)
        own = [difference(*([cell.of_checkpoint(model)] for cell in known[1:])).mean for model in models]
        differences.append(own)
        texts = [join_values(values) if values else "" for values in shares.values()]
        more = interval(difference(*([cell] for cell in known[1:])))
        lines.append(table_row([name.removeprefix(MIXED), f"{known[-1].tokens:.1f}", *texts, more, join_values(own)]))
    averages = [join_values(map(fmean, zip(*values, strict=True))) for values in means.values()]
    by_checkpoint = [fmean(own) for own in zip(*differences, strict=True)]
    lines.append(table_row(["mean", "", *averages, f"**{fmean(by_checkpoint):.1f}**", join_values(by_checkpoint)]))
    return "\n".join(lines)


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


def average(cells: Sequence[Cell]) -> list[str]:
    """Formats the mean number of tokens over sets, and the mean accuracy of each of `COLUMNS`."""
    shares = [[share for cell in cells for share in find_shares([cell], kinds)] for kinds in COLUMNS.values()]
    return [f"{fmean(cell.tokens for cell in cells):.1f}", *(f"{fmean(own):.1f}" if own else "" for own in shares)]


def find_shares(cells: Sequence[Cell], kinds: Sequence[str]) -> list[float]:
    """Computes the accuracy of each cell in %; none where these kinds were not asked."""
    if not all(kind in row["right"] for cell in cells for row in cell.rows for kind in kinds):
        return []
    return [cell.share(kinds) for cell in cells]


if __name__ == "__main__":
    sys.exit(main())
