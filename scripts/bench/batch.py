"""Compares the runner with one question at a time: `python -m scripts.bench.batch [--models demo random-160m]`.

One at a time is what LLaVA's model_vqa does: open a picture, prepare it, generate with a batch of one, next. The runner
is `llava.eval.run.runner` with its file of answers and at most `--workers` processes, whose start counts; in some cases
two processes share the questions. Each way runs in separate processes (`batch_ways.py`); the two take turns, so that
both meet the same state of the machine. Loading does not count; CPU time includes the workers'. Beside the models of
this repository there are two of random weights: a tiny one in LLaVA's own format, and a CLIP-L-shaped tower with a
language model of 160 million parameters.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llava.command import OneLineParser, integer, parse_and_run
from llava.eval.run.batching import BatchLimits
from llava.utils import device_flag
from playground.schedules import shipped_path
from scripts.markdown_table import table_head, table_row

WAYS = ("one at a time", "runner")

TEXTS = (
    "What is in the picture?",
    "How many objects are there?",
    "Is there a red circle?",
    "What color is the cross?",
    "Is there a blue square?",
    "What is to the left of the ring?",
    "How many circles are there?",
    "What shape is purple?",
    "Is there a yellow triangle?",
)
"""Asked of each picture in turn, with the same words for every model."""


@dataclass(frozen=True)
class Case:
    """What is asked of a model."""

    model: str
    pictures: int
    size: int
    """Side of the pictures in pixels."""
    per_picture: int
    """Questions to a picture."""
    new_tokens: int
    """Longest answer."""
    processes: int = 1
    """Processes that the runner's questions are shared among, as `accelerate launch` does."""


SHIPPED = {"demo": "llava", "joint": "joint"}
"""Recipes of the models of this repository: the embedded one, and one half as large."""


def _ask_shipped(model: str) -> tuple[Case, ...]:
    asked = partial(Case, model, size=448, new_tokens=128)
    return (
        asked(pictures=64, per_picture=6),
        asked(pictures=384, per_picture=1),
        asked(pictures=1536, per_picture=1),
        asked(pictures=64, per_picture=6, processes=2),
        asked(pictures=384, per_picture=1, processes=2),
        asked(pictures=1536, per_picture=1, processes=2),
    )


CASES = (
    *_ask_shipped("demo"),
    *_ask_shipped("joint"),
    Case("upstream-tiny", pictures=40, size=448, per_picture=6, new_tokens=16),
    Case("upstream-tiny", pictures=240, size=448, per_picture=1, new_tokens=16),
    Case("random-160m", pictures=2, size=336, per_picture=6, new_tokens=16),
    Case("random-160m", pictures=6, size=336, per_picture=1, new_tokens=16),
)


def write_questions(folder: Path, case: Case) -> Path:
    """Draws pictures of small shapes and writes a question file."""
    from scripts.bench.cost_models import demo_scene

    lines = []
    for number in range(case.pictures):
        demo_scene(case.size, number).save(folder / f"{number}.png")
        for turn in range(case.per_picture):
            text = TEXTS[(number + turn) % len(TEXTS)]
            lines.append({"question_id": len(lines), "image": f"{number}.png", "text": text})
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def measure(case: Case, options: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Runs both ways in turns."""
    from llava.eval.run.batch_run import choose_workers

    if case.model in SHIPPED:
        checkpoint = shipped_path(SHIPPED[case.model])
    else:
        from scripts.bench.batch_models import WRITERS

        checkpoint = folder / "model"
        WRITERS[case.model](checkpoint)
    questions = write_questions(folder, case)
    common = {"device": options.device, "checkpoint": str(checkpoint), "questions": str(questions)}
    workers = options.workers if case.processes == 1 else choose_workers(None, case.processes, options.device)
    common |= {"new_tokens": case.new_tokens, "workers": workers, "batch_size": options.batch_size}
    counts = dict(zip(WAYS, (1, case.processes), strict=True))
    running = {
        way: [start(common | {"way": way, "share": [count, number]}) for number in range(count)]
        for way, count in counts.items()
    }
    turns: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    try:
        for processes in running.values():
            for process in processes:
                read_line(process)
        for _ in range(options.repeats):
            for way, processes in running.items():
                turns[way].append(take_turn(processes))
    finally:
        for process in sum(running.values(), []):
            process.communicate()
    return turns


def take_turn(processes: Sequence[subprocess.Popen[str]]) -> dict[str, Any]:
    """Lets the processes of a way answer their shares at the same time, and joins what they measured."""
    for process in processes:
        write_line(process, "go")
    parts = [json.loads(read_line(process)) for process in processes]
    if len(parts) == 1:
        return parts[0]
    return {
        "seconds": max(part["seconds"] for part in parts),
        "cpu": sum(part["cpu"] for part in parts),
        "memory": [sum(part["memory"][place] for part in parts) for place in range(2)],
        "answers": [answer for part in parts for answer in part["answers"]],
    }


def start(options: dict[str, Any]) -> subprocess.Popen[str]:
    """Starts the process that measures one way."""
    command = [sys.executable, "-m", "scripts.bench.batch", "--measure", json.dumps(options)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def write_line(process: subprocess.Popen[str], line: str) -> None:
    """Sends a process a line."""
    if process.stdin is None:
        raise ValueError("the process has no pipes")
    process.stdin.write(line + "\n")
    process.stdin.flush()


def read_line(process: subprocess.Popen[str]) -> str:
    """Reads a process's next line."""
    if process.stdout is None:
        raise ValueError("the process has no pipes")
    if not (line := process.stdout.readline()):
        raise RuntimeError(f"a measuring process ended: {process.args}")
    return line


def report(case: Case, turns: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Computes the medians of a case, and how often both ways gave the same answer."""
    count = case.pictures * case.per_picture
    first, second = (turns[way] for way in WAYS)
    same = sum(a == b for a, b in zip(first[-1]["answers"], second[-1]["answers"], strict=True))
    ratios = [one["seconds"] / other["seconds"] for one, other in zip(first, second, strict=True)]
    return {
        "model": case.model,
        "questions": count,
        "per_picture": case.per_picture,
        "processes": case.processes,
        **{way: count / statistics.median(turn["seconds"] for turn in turns[way]) for way in WAYS},
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "cpu": [1000 * statistics.median(turn["cpu"] for turn in turns[way]) / count for way in WAYS],
        "same": same / count,
        "memory": [first[-1]["memory"][0], *second[-1]["memory"]],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats a Markdown table."""
    head = [
        "model",
        "questions",
        "to a picture",
        "processes",
        *WAYS,
        "ratio",
        "CPU ms each",
        "same answers",
        "peak MiB",
    ]
    lines = [table_head(head)]
    for row in rows:
        alone, together, worker = row["memory"]
        rates = [f"{row[way]:.2f}/s" for way in WAYS]
        cpu = " to ".join(f"{milliseconds:.1f}" for milliseconds in row["cpu"])
        memory = f"{alone:.0f} to {together:.0f} + {worker:.0f} a worker"
        cells = [
            row["questions"],
            row["per_picture"],
            row["processes"],
            *rates,
            f"{row['ratio']:.1f}",
            cpu,
            f"{row['same']:.1%}",
            memory,
        ]
        lines.append(table_row([row["model"], *map(str, cells)]))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="batch", description=__doc__.split(":")[0])
    models = tuple(dict.fromkeys(case.model for case in CASES))
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument("--repeats", type=integer(), default=5, help="turns of each way (%(default)s)")
    parser.add_argument(
        "--workers", type=integer(0), default=1, help="most processes that prepare pictures (%(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=integer(), default=BatchLimits.rows, help="most questions at once (%(default)s)"
    )
    parser.add_argument("--device", type=device_flag, help="default: the best device of this machine")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    return parse_and_run(parser, run, argv)


def run(options: argparse.Namespace) -> None:
    """Measures every case and prints a table; with `--measure`, is one of the processes that measure."""
    if options.measure:
        from scripts.bench.batch_ways import serve

        serve(argparse.Namespace(**options.measure))
        return
    from llava.utils import default_device
    from scripts.bench.machine import describe_machine, machine_line

    options.device = options.device or default_device()
    rows = []
    for case in CASES:
        if case.model in options.models:
            with tempfile.TemporaryDirectory() as scratch:
                rows.append(report(case, measure(case, options, Path(scratch))))
            print(json.dumps(rows[-1]), file=sys.stderr)
    print(f"{table(rows)}\n\n{machine_line(options.device)}")
    if options.json:
        content = {"machine": describe_machine(options.device), "rows": rows}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
