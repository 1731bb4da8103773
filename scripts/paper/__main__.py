"""Compares our scores with the QLIP paper's table: `python -m scripts.paper [mme pope ...] [-- FLAG ...]`.

Prints a line for every number: paper, ours, difference. Flags after `--` go to the runner, as in `-- --batch-size 32`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from llava.command import OneLineParser, check_outputs, integer, real, run_command
from llava.eval.score.score import write_json
from scripts.markdown_table import table_head, table_row
from scripts.paper.report import measure_columns
from scripts.paper.runs import VARIANTS
from scripts.paper.table import COLUMNS, MODELS

HEAD = ("column", "model", "tower", "settings", "paper", "ours", "difference")


def column_name(text: str) -> str:
    """Checks the name of a column, for argparse's `type`."""
    if text not in COLUMNS:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; columns are {', '.join(COLUMNS)}")
    return text


def make_parser() -> argparse.ArgumentParser:
    """Makes the command line."""
    parser = OneLineParser(prog="paper", description="Compare with the QLIP paper's table on LLaVA-1.5.")
    parser.add_argument("columns", nargs="*", type=column_name, metavar="COLUMN", help=f"of {', '.join(COLUMNS)} (all)")
    parser.add_argument("--model-7b", default=MODELS["7B"], help="folder or hub id (%(default)s)")
    parser.add_argument("--model-13b", default=MODELS["13B"], help="folder or hub id (%(default)s)")
    parser.add_argument("--download", action="store_true", help="download weights that are missing")
    parser.add_argument("--eval-dir", type=Path, default=Path("playground/data/eval"), help="the data (%(default)s)")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), metavar="V", help="of clip, qlip, paper (all)")
    parser.add_argument(
        "--alpha", nargs="+", type=real(infinite=True), default=[0.1], metavar="A", help="of the paper's rule (0.1)"
    )
    parser.add_argument(
        "--image-size", nargs="+", type=integer(), default=[672], metavar="PX", help="of the paper's rule (672)"
    )
    parser.add_argument("--prior", type=Path, help="MLP prior for the paper's rule (default: bicubic positions)")
    parser.add_argument("--protocol", choices=("letter", "likelihood"), default="letter", help="of V* (%(default)s)")
    parser.add_argument(
        "--limit", type=integer(), metavar="N", help="only the first N questions of each benchmark, without a score"
    )
    parser.add_argument("--python", default=sys.executable, help="interpreter that runs the benchmarks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the lines to this file too")
    return parser


def run(args: argparse.Namespace) -> None:
    """Measures the columns and prints them line by line.

    Raises:
        RuntimeError: a benchmark failed.
    """
    check_outputs(args, "json")
    lines = []
    print(table_head(HEAD), flush=True)
    columns = [column for name in args.columns or COLUMNS for column in COLUMNS[name]]
    for line in measure_columns(columns, args):
        lines.append(line)
        print(table_row(line.cells()), flush=True)
        if args.json:  # each time: a run takes days and may be stopped
            write_json(args.json, [asdict(line) for line in lines])
    if failed := [line for line in lines if line.failed]:
        raise RuntimeError(f"{len(failed)} of {len(lines)} numbers are missing because a benchmark failed")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    given = list(sys.argv[1:] if argv is None else argv)
    own, flags = given, []
    if "--" in given:
        own, flags = given[: given.index("--")], given[given.index("--") + 1 :]
    parser = make_parser()
    args = parser.parse_args(own)
    args.flags = flags if args.limit is None else [*flags, "--limit", str(args.limit)]
    return run_command(parser.prog, lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
