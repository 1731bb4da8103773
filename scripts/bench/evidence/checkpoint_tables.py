"""Puts several checkpoints' biases and sweeps into tables: `python -m scripts.bench.evidence.checkpoint_tables`.

Each checkpoint's biases are a file of `qlip bias --out`, its sweep is `results.jsonl` in the folder of `qlip sweep
--out`. Fills the tables of docs/results/checkpoints.md: the mean over the checkpoints, and each checkpoint's figure.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from llava.command import OneLineParser, integer, parse_and_run
from scripts.bench.evidence.pages.fill import fill_page
from scripts.markdown_table import join_values, table_head, table_row

PAGE = Path("docs/results/checkpoints.md")
SIZES = (70, 112, 154, 210, 266)


@dataclass(frozen=True)
class Measured:
    """What was measured of one checkpoint."""

    path: Path
    """The file."""
    cells: Mapping[tuple[str, ...], Any]
    """Its figures, by what identifies them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="checkpoint_tables", description="Compare checkpoints' biases and sweeps.")
    parser.add_argument("--biases", type=Path, nargs="+", default=[], metavar="FILE", help="files of qlip bias --out")
    parser.add_argument("--sweeps", type=Path, nargs="+", default=[], metavar="FILE", help="results.jsonl of sweeps")
    parser.add_argument("--sizes", type=integer(), nargs="+", default=SIZES, help="sizes to show of the biases, pixels")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the marks to fill (%(default)s)")
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Fills the page with a table for each kind of file that is given.

    Raises:
        FileNotFoundError: a file or the page is missing.
        ValueError: a file lacks what another has.
    """
    parts = {}
    if options.biases:
        parts["biases"] = bias_table([read_biases(path) for path in options.biases], options.sizes)
    if options.sweeps:
        parts["sweep"] = sweep_table([read_sweep(path) for path in options.sweeps])
    fill_page(options.page, parts, partly=True)


def read_biases(path: Path) -> Measured:
    """Reads the means of `qlip bias`, by measure, tiling, interpolation and size; of squares, "cropped", alone."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return Measured(
        path,
        {
            (row["measure"], row["tiling"], row["mode"] or "none", f"{row['size']} px"): row["mean"]
            for row in rows
            if row["shape"] == "cropped"
        },
    )


def bias_table(checkpoints: Sequence[Measured], sizes: Sequence[int]) -> str:
    """Formats the biases at some sizes, in pixels: the mean, and in brackets each checkpoint's.

    Raises:
        ValueError: a checkpoint was not measured as the first was, or not at one of the sizes.
    """
    kinds = dict.fromkeys(key[:3] for key in checkpoints[0].cells)
    lines = [table_head(["bias", "tiling", "interpolation", *(f"{size} px" for size in sizes)])]
    for kind in kinds:
        found = [find(checkpoints, (*kind, f"{size} px")) for size in sizes]
        cells = [f"**{fmean(values):.2f}** ({join_values(values, 2)})" for values in found]
        lines.append(table_row([*kind, *cells]))
    return "\n".join(lines)


def read_sweep(path: Path) -> Measured:
    """Reads the records of `qlip sweep` by the settings that vary in it, CLIP's first."""
    from llava.eval.sweep.plots import describe, find_varying

    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = find_varying(records)
    records.sort(key=lambda record: record["settings"] is not None)
    return Measured(path, {(describe(record["settings"], names),): record for record in records})


def sweep_table(checkpoints: Sequence[Measured]) -> str:
    """Formats the accuracy in % and the tokens of every cell of a sweep, each checkpoint's accuracy beside the mean.

    Raises:
        ValueError: a checkpoint's sweep lacks a cell of the first one's.
    """
    lines = [table_head(["settings", "tokens", "accuracy", "by checkpoint", "count"])]
    for key in checkpoints[0].cells:
        records = find(checkpoints, key)
        shares = [100 * record["accuracy"]["mean"] for record in records]
        counts = [100 * record["categories"]["count"]["mean"] for record in records]
        tokens = fmean(record["tokens"] for record in records)
        lines.append(
            table_row([*key, f"{tokens:.1f}", f"{fmean(shares):.1f}", join_values(shares), f"{fmean(counts):.1f}"])
        )
    return "\n".join(lines)


def find(checkpoints: Sequence[Measured], key: tuple[str, ...]) -> list[Any]:
    """Finds what each checkpoint has of a cell.

    Raises:
        ValueError: one has none.
    """
    for measured in checkpoints:
        if key not in measured.cells:
            raise ValueError(f"{measured.path} lacks {', '.join(key)!r}; measure all checkpoints alike")
    return [measured.cells[key] for measured in checkpoints]


if __name__ == "__main__":
    sys.exit(main())
