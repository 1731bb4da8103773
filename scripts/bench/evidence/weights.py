"""Compares weights of small leaves in attention: `python -m scripts.bench.evidence.weights --answers-files F`.

`python -m scripts.bench.evidence.run --experiments weights` answers first. Fills the tables of docs/results/weights.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import OneLineParser, parse_and_run
from scripts.bench.evidence.answering.answers import Answers, Cell, difference
from scripts.bench.evidence.answering.experiments import EXPERIMENTS
from scripts.bench.evidence.answering.flags import add_answers_flags, add_split_flag, read_answers
from scripts.bench.evidence.answering.variants import BEFORE, Variant
from scripts.bench.evidence.pages.comparison import COLUMNS, average_shares
from scripts.bench.evidence.pages.fill import fill_page
from scripts.bench.evidence.pages.tables import interval
from scripts.markdown_table import table_head, table_row

if TYPE_CHECKING:
    import argparse

PAGE = Path("docs/results/weights.md")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="weights", description="Compare weights of small leaves in attention.")
    add_answers_flags(parser)
    add_split_flag(parser)
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the mark to fill (%(default)s)")
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Fills the page's table of a split."""
    mark = f"weights: {options.split}"
    fill_page(options.page, {mark: compare(read_answers(options))}, partly=True)
    print(f"filled {options.page}, {mark}")


def compare(answers: Answers) -> str:
    """Formats means over the sets, a row for each checkpoint and each way that it was asked in.

    Raises:
        ValueError: a checkpoint was asked in a way about a part of the sets, or not in the shipped way.
    """
    lines = [table_head(["checkpoint", "size_bias", "llm_size_bias", *COLUMNS, "more than shipped", "signs more"])]
    before: dict[str, list[Cell]] = {}
    for way in EXPERIMENTS["weights"].ways:
        for model, cells in find_cells(answers, way).items():
            if way.name == BEFORE.name:
                before[model] = cells
            elif model not in before:
                raise ValueError(f"{model!r} was not asked in the way {BEFORE.name!r}")
            settings = way.resolve(answers.own)
            if settings is None:
                raise ValueError(f"the way {way.name!r} has no quadtree")
            more = ["", ""]
            if way.name != BEFORE.name:
                more = [interval(difference(before[model], cells, kinds)) for kinds in (None, COLUMNS["signs"])]
            values = [settings.size_bias, settings.llm_size_bias, *average_shares(cells), *more]
            lines.append(table_row([model, *map(str, values)]))
    return "\n".join(lines)


def find_cells(answers: Answers, way: Variant) -> dict[str, list[Cell]]:
    """Finds each checkpoint's answers of a way, a cell for each set.

    Raises:
        ValueError: a checkpoint has answers to a part of the sets.
    """
    sets = EXPERIMENTS["weights"].sets
    found: dict[str, list[Cell]] = {}
    for cell in (answers.cell(way, name) for name in sets):
        for row in cell.rows if cell else ():
            found.setdefault(row["model"], []).append(Cell([row]))
    for model, cells in found.items():
        if len(cells) < len(sets):
            raise ValueError(f"{model!r} has answers to {len(cells)} of {len(sets)} sets by {way.name!r}")
    return dict(sorted(found.items(), reverse=True))


if __name__ == "__main__":
    sys.exit(main())
