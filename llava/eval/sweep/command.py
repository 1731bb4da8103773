"""Measures accuracy over QLIP's settings on a question file: `qlip sweep`, or `python -m llava.eval.sweep`.

The model's code is imported when a sweep runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.command import OneLineParser, integer, run_command
from llava.serve.loading import add_model_flags

DESCRIPTION = """Measure a model's accuracy on a question file over QLIP's settings, with the CLIP tower beside them.
Settings that no flag names are the checkpoint's own. A stopped sweep continues when it is run again."""


def add_command(commands: Any) -> None:
    """Adds `sweep` to the commands of `qlip`, which finds this function through its entry point."""
    parser = commands.add_parser(
        "sweep",
        help="accuracy over settings, from a question file",
        description=DESCRIPTION,
        conflict_handler="resolve",
    )
    add_flags(parser)
    parser.set_defaults(run=command)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags to a parser that lets the lists here replace the single values of the model flags."""
    add_model_flags(parser)
    parser.add_argument("--question-file", type=Path, required=True, help="questions, LLaVA's JSON lines")
    parser.add_argument("--answers-file", type=Path, help="right answers, where the question file has none")
    parser.add_argument("--image-folder", type=Path, required=True, help="folder of the images")
    parser.add_argument("--out", type=Path, required=True, help="folder of results.jsonl and the figures")
    parser.add_argument("--alpha", nargs="+", metavar="A", help="split thresholds")
    parser.add_argument("--max-tokens", nargs="+", metavar="N", help="budgets; none is unbounded")
    parser.add_argument(
        "--image-size",
        nargs="+",
        metavar="PX",
        help="shorter sides in pixels, by which geometry native only chooses how often CLIP's cells are halved; none is"
        " the image's own",
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="NAME=V1,V2", help="values of any other QLIP setting"
    )
    parser.add_argument("--qlip", action=argparse.BooleanOptionalAction, default=True, help="measure QLIP's cells")
    parser.add_argument("--clip", action=argparse.BooleanOptionalAction, default=True, help="measure the CLIP tower")
    parser.add_argument("--limit", type=integer(), metavar="N", help="only the first N questions")
    parser.add_argument("--max-new-tokens", type=integer(), default=64, help="longest answer, in tokens (%(default)s)")
    parser.add_argument("--batch-tokens", type=integer(), default=16384, help="most tokens of a batch (%(default)s)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = OneLineParser(prog="qlip sweep", description=DESCRIPTION, conflict_handler="resolve")
    add_flags(parser)
    return command(parser.parse_args(argv))


def command(args: argparse.Namespace) -> int:
    """Runs a sweep; returns the exit code: 0, 1 if cells were skipped, 2 for an error, 130 after Ctrl-C."""

    def sweep() -> int:
        from llava.eval.sweep.measure import run

        return run(args)

    return run_command("qlip sweep", sweep, interrupted="stopped; the same command continues with the next cell")


if __name__ == "__main__":
    sys.exit(main())
