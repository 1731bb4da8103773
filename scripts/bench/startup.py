"""Measures what it costs to start: `python -m scripts.bench.startup [--repeats 5] [--out startup.json]`.

Processor seconds (user and system time of the whole process) and peak memory of every command, compared with `python -c
"import torch"` in the same run. Each round runs every command once, so that a busy minute is spread over all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from llava.command import OneLineParser, integer, parse_and_run

ROOT = Path(__file__).parents[2]
MAIN = "\nif __name__ =="
TORCH = "import torch"

CONTROLLER = """
from llava.serve import controller
from llava.serve.workers import controller_app, dispatcher, heartbeat, protocol
from llava.serve.http import connections, server
"""
"""The imports of a controller that serves."""

IMAGE_WORKER = """
from llava.model.vision.preparer import Preparer
"""
"""The imports of a process that prepares images for a question file."""


@dataclass(frozen=True)
class Command:
    """A command line and what it may cost."""

    name: str
    line: tuple[str, ...]
    """Arguments after `python`."""
    seconds: float | None = None
    """Target in processor seconds."""
    ratio: float | None = None
    """Target as a multiple of importing torch."""
    megabytes: float | None = None
    """Target of the peak memory."""


@dataclass(frozen=True)
class Cost:
    """One start."""

    seconds: float
    megabytes: float


def programs() -> list[str]:
    """Finds every module of the repository that is a program."""
    files = [file for package in ("qlip", "llava", "scripts", "playground") for file in (ROOT / package).rglob("*.py")]
    mains = [file for file in files if file.name == "__main__.py" or MAIN in file.read_text(encoding="utf-8")]
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__") for file in mains}
    return sorted(name for name in modules if not name.startswith("scripts.examples"))


def commands(folder: Path) -> list[Command]:
    """Lists what is measured; files go to `folder`."""
    from llava.utils import demo_model_path, demo_picture_path

    picture, model = str(demo_picture_path()), str(demo_model_path())
    prompt = ("-m", "llava.serve.cli", "--model-path", model, "--image-file", picture, "--prompt", "What is this?")
    found = [
        Command(TORCH, ("-c", TORCH)),
        Command("controller", ("-c", CONTROLLER), seconds=0.6, megabytes=80),
        Command("qlip show", ("-m", "qlip", "show", picture, "--out", str(folder / "leaves.png")), ratio=1.3),
        Command("llava --prompt", prompt, ratio=2.5),
        Command("image worker", ("-c", IMAGE_WORKER), ratio=1.2),
    ]
    return found + [Command(f"{name} --help", ("-m", name, "--help"), seconds=0.3) for name in programs()]


def run_once(command: Command) -> Cost:
    """Runs a command to its end; its peak memory is at least that of this process, which starts it.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryFile() as errors:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, *command.line], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{command.name} failed: {errors.read().decode(errors='replace').strip()[-500:]}")
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Cost(usage.ru_utime + usage.ru_stime, peak)


def row(command: Command, cost: Cost, torch_seconds: float) -> str:
    """Formats a command's medians and its target as a line of a Markdown table."""
    ratio = cost.seconds / torch_seconds
    targets = [
        (command.seconds, cost.seconds, "s"),
        (command.ratio, ratio, "x import torch"),
        (command.megabytes, cost.megabytes, "MB"),
    ]
    wanted = ", ".join(
        f"{limit:g} {unit}{'' if value <= limit else ' (missed)'}"
        for limit, value, unit in targets
        if limit is not None
    )
    return f"| {command.name} | {cost.seconds:.2f} | {ratio:.2f} | {cost.megabytes:.0f} | {wanted or '-'} |"


def measure(args: argparse.Namespace) -> None:
    """Prints the table, and writes it to `--out`."""
    with tempfile.TemporaryDirectory() as folder:
        listed = commands(Path(folder))
        costs: dict[str, list[Cost]] = {command.name: [] for command in listed}
        for _ in range(args.repeats):
            for command in listed:
                costs[command.name].append(run_once(command))
    medians = {
        name: Cost(median(cost.seconds for cost in own), median(cost.megabytes for cost in own))
        for name, own in costs.items()
    }
    print(f"| command | CPU s (median of {args.repeats}) | / import torch | peak MB | target |\n|---|---|---|---|---|")
    for command in listed:
        print(row(command, medians[command.name], medians[TORCH].seconds))
    if args.out:
        args.out.write_text(json.dumps({name: vars(cost) for name, cost in medians.items()}, indent=1) + "\n")


def make_parser() -> argparse.ArgumentParser:
    """Makes the command line."""
    parser = OneLineParser(prog="startup", description="Measures what it costs to start each command.")
    parser.add_argument("--repeats", type=integer(), default=5, help="runs of each command; medians are shown")
    parser.add_argument("--out", type=Path, help="write the medians here, as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    return parse_and_run(make_parser(), measure, argv)


if __name__ == "__main__":
    sys.exit(main())
