"""Compares the batches of training: `python -m scripts.bench.training [--models demo random-13m]`.

LLaVA's ways are a number of samples in random order, padded to the longest, and the same with
--group_by_modality_length. Ours are --batch_tokens, and --batch_tokens with --pack, at no more tokens per step, padding
included, than LLaVA's longest step, so that they need no more memory. All train the same model on the same samples:
answers of 5 to 300 tokens, spread evenly by order of magnitude, a quarter text only, images of four sizes under the
quadtree. The ways take turns; a turn is an epoch of steps over batches that are ready. In each turn the preparation of
data is measured alone, too, and compared with what the fastest way consumes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.command import OneLineParser, integer, parse_and_run
from scripts.markdown_table import table_head, table_row

MODELS = ("demo", "random-13m")


def steps_table(model: str, rows: Sequence[dict[str, Any]]) -> str:
    """Formats the ways of one model as a Markdown table.

    Args:
        model: its name.
        rows: for each way its `name`, `steps` and `samples` per epoch, `longest` step and `padding`, and for each turn
            the `rates`, target tokens per second.
    """
    head = [model, "samples a step", "longest step, tokens", "padding", "target tokens/s", "ratio", "ratios"]
    lines, first = [table_head(head)], rows[0]["rates"]
    for row in rows:
        ratios = [rate / base for rate, base in zip(row["rates"], first, strict=True)]
        lines.append(
            table_row(
                [
                    row["name"],
                    f"{row['samples'] / row['steps']:.1f}",
                    f"{row['longest']}",
                    f"{row['padding']:.0%}",
                    f"{statistics.median(row['rates']):,.0f}",
                    f"{statistics.median(ratios):.2f}",
                    f"{min(ratios):.2f} to {max(ratios):.2f}",
                ]
            )
        )
    return "\n".join(lines)


def data_table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats how fast data is prepared, in samples per second, beside what the fastest way consumes."""
    lines = [table_head(["model", "workers", "prepared, samples/s", "consumed, samples/s", "ratio"])]
    for row in rows:
        made, used = row["prepared"], row["consumed"]
        ratios = [one / other for one, other in zip(made, used, strict=True)]
        rates = [f"{statistics.median(rate):.0f}" for rate in (made, used)]
        lines.append(table_row([row["model"], str(row["workers"]), *rates, f"{statistics.median(ratios):.1f}"]))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="training", description=__doc__.split(":")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--samples", type=integer(8), default=128, help="samples of an epoch (%(default)s)")
    parser.add_argument("--batch-size", type=integer(), default=16, help="samples of LLaVA's steps (%(default)s)")
    parser.add_argument("--max-length", type=integer(512), default=512, help="tokens of a packed row (%(default)s)")
    parser.add_argument("--repeats", type=integer(), default=3, help="turns of each way (%(default)s)")
    parser.add_argument("--bf16", action="store_true", help="mixed precision, for a GPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    return parse_and_run(parser, run, argv)


def run(options: argparse.Namespace) -> None:
    """Measures every model and prints the tables."""
    from llava.utils import default_device
    from scripts.bench.machine import describe_machine, machine_line
    from scripts.bench.training_ways import measure

    measured: list[dict[str, Any]] = []
    for model in options.models:
        with tempfile.TemporaryDirectory() as scratch:
            measured.append(measure(model, options, Path(scratch)))
        print(json.dumps(measured[-1]), file=sys.stderr)
    for figures in measured:
        print(f"{steps_table(figures['model'], figures['ways'])}\n")
    print(data_table([row for figures in measured for row in figures["data"]]))
    print(f"\n{machine_line(default_device())}")
    if options.json:
        content = {"machine": describe_machine(default_device()), "models": measured}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
