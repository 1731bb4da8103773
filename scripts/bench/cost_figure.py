"""Draws the time of each stage as bars: `python -m scripts.bench.cost_figure` makes docs/results/cost.svg of cost.md.

The numbers are those of the page that `scripts.bench.cost` prints, so that page and figure cannot differ.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.command import OneLineParser, parse_and_run

STAGES = ("prepare", "partition", "extraction", "tower", "projector", "prefill")
"""What is between a picture and the first token of an answer, in this order."""
SHOWN = {"demo": ("448 px", "small model"), "vit-l": ("672 px", "ViT-L/14-336 and projector, random weights")}
"""Model -> the size of the pictures, and the title."""
LEFT_OUT = ("recursive", "gradient")
"""Words in the names of ways that are not drawn."""


@dataclass(frozen=True)
class Timed:
    """One row of a table of costs."""

    model: str
    picture: str
    """Its size: "448 px"."""
    way: str
    tokens: str
    times: Mapping[str, float]
    """Milliseconds by stage; stages that a way lacks are absent."""


def read_costs(page: str) -> list[Timed]:
    """Reads the tables of a page of `scripts.bench.cost`.

    Raises:
        ValueError: the page has none.
    """
    rows, model, heads = [], "", []
    for line in page.splitlines():
        if title := re.fullmatch(r"(\S+), (?:float|bfloat)\d+, \d+ turns", line):
            model = title[1]
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("| ") else []
        if cells[:1] == ["picture"]:
            heads = cells
        elif cells:
            row = dict(zip(heads, cells, strict=True))
            times = {stage: float(row[stage]) for stage in STAGES if row.get(stage, "–") != "–"}
            rows.append(Timed(model, row["picture"], row["seen by"], row["tokens"], times))
    if not rows:
        raise ValueError("the page has no table of costs; python -m scripts.bench.cost prints one")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="cost_figure", description="Draw the time of each stage from the page of costs.")
    parser.add_argument("--page", type=Path, default=Path("docs/results/cost.md"), help="of costs (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/cost.svg"), help="figure (%(default)s)")
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Draws a panel for each model of the page, a bar for each way at one size of picture."""
    from qlip.tools.plots import Stacks, plot_stacks

    rows = read_costs(options.page.read_text(encoding="utf-8"))
    panels = []
    for model, (picture, title) in SHOWN.items():
        chosen = [row for row in rows if (row.model, row.picture) == (model, picture)]
        bars = {
            f"{row.way}, {row.tokens} tokens": row.times
            for row in chosen
            if not any(word in row.way for word in LEFT_OUT)
        }
        if bars:
            panels.append(Stacks(bars, "milliseconds", f"{title}, picture of {picture}"))
    plot_stacks(options.out, panels, STAGES)
    print(options.out)


if __name__ == "__main__":
    sys.exit(main())
