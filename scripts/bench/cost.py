"""Measures the cost of each stage: `python -m scripts.bench.cost [--models demo vit-l llava-7b] [--sizes 112 ...]`.

Prints one Markdown table per model, or writes the page of them (`--out docs/results/cost.md`): visual tokens and
milliseconds of every stage (`cost_stages.py`) by size of picture, for QLIP, for its peer CLIP on the downsized
picture, for the uniform grid at native size, and for QLIP with a recursive quadtree instead of its own. Models
(`cost_models.py`): the embedded one, on synthetic scenes; a ViT-L/14-336 with LLaVA's projector, on photographs; and,
on a GPU, a LLaVA of 7B's shape. The last two have random weights, float32 on the CPU and float16 on a GPU. All times
are medians over turns in which every way sees the same picture.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.command import OneLineParser, integer, run_command
from scripts.bench.machine import describe_machine
from scripts.bench.pictures import multiple_of_patch

MODELS = ("demo", "vit-l", "llava-7b")
SIZES = [112, 224, 336, 448, 672, 896, 1344, 1792]

TURNS = {"demo": 12, "vit-l": 3, "llava-7b": 5}
"""Timed turns by model: a whole run takes minutes on two cores, and on a GPU."""

NOTES = """\
Milliseconds; medians. prepare: picture to tensor. partition: tensor to leaves. extraction: leaves to patches. tower:
the rest of the vision tower. prefill: encoded image and prompt to the first token. decode: each further token. total:
{total}. total / CLIP: against CLIP's in the same turns. quadtree / ours:
partition and extraction of the recursive quadtree against QLIP's for the same leaves, except ties where the budget
ends. CLIP's tower runs all its layers, as in transformers; QLIP's stops at the last but one, which LLaVA reads."""
TOTAL = {True: "tensor on the CPU to the first token, timed by itself", False: "sum from partition to projector"}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = OneLineParser(prog="cost", description="Times each stage from a picture to an answer, for CLIP and QLIP.")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="default: all that the device can run")
    parser.add_argument("--sizes", type=multiple_of_patch, nargs="+", default=SIZES, help="sides of pictures in pixels")
    parser.add_argument("--repeats", type=integer(), help=f"timed turns; default: {TURNS}. One more warms up")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(%(default)s)")
    parser.add_argument("--out", type=Path, metavar="PAGE", help="write the page of docs here instead of printing it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows, with every run, here")
    options = parser.parse_args(arguments)
    if options.device == "cuda":
        check_cuda(parser)
    options.models = options.models or [name for name in MODELS if options.device == "cuda" or name != "llava-7b"]
    if "llava-7b" in options.models and options.device == "cpu":
        parser.error("llava-7b is measured on a GPU only: its random weights take 14 GB in float16; add --device cuda")
    return options


def check_cuda(parser: argparse.ArgumentParser) -> None:
    """Refuses `--device cuda` on a machine without a GPU."""
    import torch

    if not torch.cuda.is_available():
        parser.error("--device is cuda, but torch finds no GPU on this machine; leave the flag out")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    options = parse(argv)
    return run_command("cost", lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Measures every model, and prints the tables or writes their page."""
    import torch

    from scripts.bench.cost_table import build, measure_model, table, ways_of

    torch.manual_seed(0)
    report: dict[str, Any] = {"machine": describe_machine(options.device), "models": {}, "rows": [], "left_out": []}
    named = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    parts = ["# Cost by stage", f"`python -m scripts.bench.cost --out docs/results/cost.md`; {named}"]
    for name in options.models:
        subject = build(name, options.device)
        repeats = options.repeats or TURNS[name]
        rows, left_out = measure_model(subject, options.device, options.sizes, repeats)
        dtype = str(subject.model.dtype).removeprefix("torch.")
        report["models"][name] = {"dtype": dtype, "repeats": repeats}
        report["rows"] += [row.to_dict() for row in rows]
        report["left_out"] += [f"{name}: {text}" for text in left_out]
        ways = ways_of(name, options.device, options.sizes[0], options.sizes)
        notes = NOTES.format(total=TOTAL[subject.decodes])
        notes += f"\nLeft out for their cost: {', '.join(left_out)}." if left_out else ""
        parts += [f"{name}, {dtype}, {repeats} turns", table(rows, ways), notes]
    page = "\n\n".join(parts) + "\n"
    if options.out is None:
        print(page, end="")
    else:
        options.out.write_text(page, encoding="utf-8")
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
