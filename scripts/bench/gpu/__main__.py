"""Checks and measures what runs on a GPU: `make gpu-check`, or `python -m scripts.bench.gpu [--parts quadtree ...]`.

Each part (`parts.py`) runs in a separate process within a time limit and prints each result at once. The results go to
docs/results/gpu.json, from which docs/results/gpu.md is rendered. Without a GPU one line says so. `--device cpu
--model tiny` tries everything without one, and writes nothing unless `--out` names a folder.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from datetime import date
from importlib import import_module
from pathlib import Path

from llava.command import OneLineParser, integer, parse_and_run, real
from scripts.bench.gpu.page import FILE, PAGE, load_report, render, write_report
from scripts.bench.gpu.parts import PARTS
from scripts.bench.gpu.processes import PartProcess, part_command

LEAST = 15.0
"""A part is not begun with fewer seconds left."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="gpu-check", description="Test and measure what runs on a GPU.")
    names = [part.name for part in PARTS]
    parser.add_argument("--parts", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(%(default)s)")
    parser.add_argument("--model", choices=("llava-7b", "tiny"), default="llava-7b", help="(%(default)s)")
    parser.add_argument("--turns", type=integer(), help="timed turns; default: each part's own number")
    parser.add_argument("--limit", type=real(above=True), default=330.0, help="seconds for all parts (%(default)s)")
    parser.add_argument("--out", type=Path, help=f"folder of {FILE} and {PAGE}; default on a GPU: docs/results")
    parser.add_argument("--render", action="store_true", help=f"only write {PAGE} from {FILE}")
    parser.add_argument("--part", choices=names, help=argparse.SUPPRESS)
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> int:
    """Runs the parts; with `--part`, is the process of one."""
    if options.part:
        return run_part(options)
    folder = options.out or (Path("docs/results") if options.device == "cuda" else None)
    if options.render:
        folder = folder or Path("docs/results")
        (folder / PAGE).write_text(render(load_report(folder)), encoding="utf-8")
        return 0
    # Pictures are prepared in many threads at once, each of which would start threads for every core.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu-check: skipped, since torch finds no GPU on this machine")
        return 0
    return run_parts(options, folder)


def run_part(options: argparse.Namespace) -> int:
    """Imports a part, waits for a line on stdin, and runs the part."""
    (part,) = (part for part in PARTS if part.name == options.part)
    module = import_module(f"scripts.bench.gpu.{part.module}")
    if not sys.stdin.readline():  # the command has ended
        return 1
    return int(module.run(options.model, options.device, options.turns or part.turns) > 0)


def run_parts(options: argparse.Namespace, folder: Path | None) -> int:
    """Runs the parts one after the other and writes the report after each; 1 if any of them is not done."""
    from scripts.bench.machine import describe_machine

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the parts are stopped, too
    parts = [part for part in PARTS if part.name in options.parts]
    commands = [part_command(part, options.model, options.device, options.turns) for part in parts]
    facts = {"date": date.today().isoformat(), "model": options.model, "machine": describe_machine(options.device)}
    print(", ".join(f"{name} {value}" for name, value in facts["machine"].items()), flush=True)
    report = {} if folder is None else load_report(folder)
    deadline, statuses = time.monotonic() + options.limit, []
    waiting = [PartProcess(commands[0])]
    try:
        for number, part in enumerate(parts):
            # The next one's imports take as long as a measurement: it does them meanwhile.
            waiting += [PartProcess(command) for command in commands[number + 1 :][:1]]
            start, left = time.monotonic(), deadline - time.monotonic()
            status, rows = "not run: no time was left", []
            if left >= min(LEAST, part.limit):
                status, rows = waiting[number].finish(min(part.limit, left))
            print(f"{part.name}: {status}, {time.monotonic() - start:.0f} s", flush=True)
            statuses.append(status)
            report[part.name] = {**facts, "status": status, "rows": rows}
            if folder is not None:
                write_report(folder, report)
    finally:
        for process in waiting:
            process.stop()
    return int(statuses != ["done"] * len(parts))


if __name__ == "__main__":
    sys.exit(main())
