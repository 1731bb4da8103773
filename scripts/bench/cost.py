"""What each stage costs: `python -m scripts.bench.cost [--models demo vit-l llava-7b] [--sizes 112 ...] [--json FILE]`.

Prints one Markdown table per model: visual tokens and milliseconds of every stage (`cost_stages.py`) by size of
picture, for QLIP, for its peer CLIP on the downsized picture, for the uniform grid at native size, and for QLIP with a
recursive quadtree in place of its own. Models (`cost_models.py`): the embedded one, on synthetic scenes; a ViT-L/14-336
with LLaVA's projector, on photographs; and, on a GPU, a LLaVA of 7B's shape. The last two have random weights, float32
on the CPU and float16 on a GPU. All times are medians over turns in which every way sees the same picture.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from llava.command import OneLineParser, integer, run_command
from scripts.bench.cost_models import SHAPES, Subject, build_random, load_demo
from scripts.bench.cost_stages import STAGES, Row, Way, measure
from scripts.bench.quadtree import PATCH, multiple_of_patch

MODELS = ("demo", *SHAPES)
SIZES = [112, 224, 336, 448, 672, 896, 1344, 1792]
NEW_TOKENS = 16
UNIFORM_CELLS = 48**2
"""Largest grid that the uniform way is timed on, 672 px: attention over the next ones takes seconds a turn."""

TURNS = {"demo": 12, "vit-l": 3, "llava-7b": 5}
"""Timed turns by model: a whole run takes minutes on two cores, and on a GPU."""

CLIP = Way("CLIP", None)
PAPER = {"criterion": "gradient", "alpha": 0.1, "coarsest": "any"}
"""The paper's quadtree, which the recursive one can build too."""
NOTES = """\
Milliseconds; medians. prepare: picture to tensor. partition: tensor to leaves. extraction: leaves to patches. tower:
the rest of the vision tower. prefill: encoded image and prompt to the first token. decode: each further token. total:
{total}. total / CLIP: against CLIP's in the same turns. quadtree / ours:
partition and extraction of the recursive quadtree against QLIP's for the same leaves, save for ties where the budget
ends. CLIP's tower runs all its layers, as in transformers; QLIP's stops at the last but one, which LLaVA reads."""
TOTAL = {True: "tensor on the CPU to the first token, timed by itself", False: "sum from partition to projector"}


def budget(tokens: int) -> Way:
    """QLIP with the paper's criterion and a budget."""
    return Way(f"QLIP {tokens}", {**PAPER, "max_tokens": tokens})


def recursive(way: Way, device: str) -> list[Way]:
    """The same leaves by the recursive quadtree: on the model's device and, where that is a GPU, on the CPU too."""
    places = [(device, "recursive")] if device == "cpu" else [(device, "recursive on GPU"), ("cpu", "recursive on CPU")]
    return [Way(f"{way.name}, {name}", way.settings, place, same_leaves_as=way.name) for place, name in places]


def ways_of(model: str, device: str, size: int, sizes: Sequence[int]) -> list[Way]:
    """What is timed for a model at one of the sizes; ViT-L's further budgets at the middle one only.

    A tower's time follows from its number of tokens, so that more of them would say the same for minutes more.
    """
    if model == "demo":
        gradient = Way("QLIP, gradient", PAPER)
        uniform = Way("uniform, native size", {"alpha": 0.0, "max_tokens": None}, most_cells=UNIFORM_CELLS)
        return [CLIP, Way("QLIP as shipped"), gradient, *recursive(gradient, device), uniform]
    if model == "vit-l":
        further = [288, 864, 1024] if size == sizes[len(sizes) // 2] else []
        return [CLIP, *(budget(tokens) for tokens in sorted([576, *further])), *recursive(budget(576), device)]
    return [CLIP, *map(budget, (144, 288, 576, 1024)), *recursive(budget(576), device)]


def build(model: str, device: str) -> Subject:
    """One of `MODELS`."""
    if model == "demo":
        return load_demo(device)
    return build_random(model, SHAPES[model], device, torch.float32 if device == "cpu" else torch.float16)


def measure_model(
    subject: Subject, device: str, sizes: Sequence[int], repeats: int, new_tokens: int = NEW_TOKENS
) -> tuple[list[Row], list[str]]:
    """All rows of a model, and what was left out."""
    rows, left_out = [], []
    for size in sizes:
        ways, cells = ways_of(subject.name, device, size, sizes), (size // PATCH) ** 2
        fitting = [way for way in ways if way.most_cells is None or cells <= way.most_cells]
        left_out += [f"{way.name} at {size} px ({cells} tokens)" for way in ways if way not in fitting]
        rows += measure(subject, fitting, size, repeats, new_tokens)
    return rows, left_out


def table(rows: Sequence[Row], ways: Sequence[Way]) -> str:
    """Markdown: a row of every way at every size; columns that all rows lack are left out."""
    stages = [stage for stage in STAGES if any(stage in row.runs for row in rows)]
    head = ["picture", "seen by", "tokens", *stages, "total / CLIP", "quadtree / ours"]
    lines = [markdown(head), "|---" * len(head) + "|"]
    peers = {way.name: way.same_leaves_as for way in ways}
    by_place = {(row.size, row.way): row for row in rows}
    for row in rows:
        total = ratio(row, by_place.get((row.size, CLIP.name)), "total")
        tree = ratio(row, by_place.get((row.size, peers.get(row.way) or "")), "partition", "extraction")
        times = [show(row.median(stage)) for stage in stages]
        lines.append(markdown([f"{row.size} px", row.way, f"{row.tokens:g}", *times, show(total), show(tree)]))
    return "\n".join(lines)


def markdown(cells: Sequence[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def ratio(row: Row, peer: Row | None, *stages: str) -> float | None:
    """How many times the peer's the stages take; None where one of the two lacks them."""
    own, other = row.median(*stages), peer and peer.median(*stages)
    return own / other if own is not None and other else None


def show(value: float | None) -> str:
    """Three digits, or a dash."""
    if value is None:
        return "–"
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


def machine(device: str) -> dict[str, Any]:
    """What the times depend on."""
    return {
        "device": torch.cuda.get_device_name(device) if device != "cpu" else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = OneLineParser(prog="cost", description="Times each stage from a picture to an answer, for CLIP and QLIP.")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="default: all that the device can run")
    parser.add_argument("--sizes", type=multiple_of_patch, nargs="+", default=SIZES, help="sides of pictures in pixels")
    parser.add_argument("--repeats", type=integer(), help=f"timed turns; default: {TURNS}. One more warms up")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows, with every run, here")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch finds no GPU here")
    options.models = options.models or [name for name in MODELS if options.device == "cuda" or name != "llava-7b"]
    if "llava-7b" in options.models and options.device == "cpu":
        parser.error("llava-7b is measured on a GPU only: its random weights take 14 GB in float16; add --device cuda")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    options = parse(argv)
    return run_command("cost", lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Measures what the flags name and prints the tables."""
    torch.manual_seed(0)
    report: dict[str, Any] = {"machine": machine(options.device), "models": {}, "rows": [], "left_out": []}
    print(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    for name in options.models:
        subject = build(name, options.device)
        repeats = options.repeats or TURNS[name]
        rows, left_out = measure_model(subject, options.device, options.sizes, repeats)
        dtype = str(subject.model.dtype).removeprefix("torch.")
        report["models"][name] = {"dtype": dtype, "repeats": repeats}
        report["rows"] += [row.to_dict() for row in rows]
        report["left_out"] += [f"{name}: {text}" for text in left_out]
        ways = ways_of(name, options.device, options.sizes[0], options.sizes)
        print(f"\n{name}, {dtype}, {repeats} turns\n\n{table(rows, ways)}\n")
        print(NOTES.format(total=TOTAL[subject.decodes]))
        if left_out:
            print(f"Left out for their cost: {', '.join(left_out)}.")
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
