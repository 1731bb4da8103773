"""The command behind each script of the paper's table: runs benchmarks, prints paper, ours and their difference.

A benchmark is run by its script in scripts/v1_5/eval, which keeps answers, so that a stopped run goes on. What cannot
be measured, for want of weights or data, is reported as such.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llava.command import OneLineParser, check_outputs, integer, parse_and_run, real
from llava.eval.score.score import write_json
from llava.model.checkpoint import local_folder
from scripts.paper.runs import VARIANTS, Run, make_runs, with_settings
from scripts.paper.table import MODELS, Column

SCRIPTS = Path(__file__).parents[1] / "v1_5" / "eval"
NO_DATA = 3
"""Exit code of a benchmark's script without its data."""

HEAD = ("column", "model", "tower", "settings", "paper", "ours", "difference")

Rows = dict[str, dict[str, float]]


class NotMeasured(Exception):
    """There are no weights, or no data, or a benchmark failed; the message says which."""

    def __init__(self, reason: str, failed: bool = False) -> None:
        super().__init__(reason)
        self.failed = failed


@dataclass(frozen=True)
class Line:
    """A number of the table."""

    column: str
    model: str
    tower: str
    settings: str
    paper: float | None
    ours: float | None
    note: str
    """Why there is no number of ours."""
    failed: bool = False
    """Whether there should be one."""

    def cells(self) -> list[str]:
        """For people."""
        paper = "" if self.paper is None else f"{self.paper:.1f}"
        ours = f"not measured: {self.note}" if self.ours is None else f"{self.ours:.1f}"
        difference = "" if self.ours is None or self.paper is None else f"{self.ours - self.paper:+.1f}"
        return [self.column, self.model, self.tower, self.settings, paper, ours, difference]


def measure(script: str, run: Run, model_path: str, args: argparse.Namespace) -> Rows:
    """The score of a benchmark; its script asks what has not been asked yet.

    Raises:
        NotMeasured: there are no weights or no data, or the script failed.
    """
    try:
        checkpoint = local_folder(model_path, local_files_only=not args.download)
    except FileNotFoundError:
        raise NotMeasured(f"no weights ({model_path})") from None
    name = f"{Path(model_path).name}_{run.name}"
    folder = with_settings(checkpoint, run.qlip, args.eval_dir / "paper" / name)
    score = args.eval_dir / "paper" / f"{name}_{script}.json"
    score.unlink(missing_ok=True)
    own = {"EVAL_DIR": str(args.eval_dir), "CKPT": name, "SCORE_FILE": str(score), "PYTHON": args.python}
    code, told = run_script(script, ["--model-path", str(folder), *args.flags], own | {"PROTOCOL": args.protocol})
    if code == NO_DATA:
        raise NotMeasured(f"no data ({told[0].partition(': ')[2].strip()})")
    if code:
        raise NotMeasured(f"{script}.sh failed ({told[-1].strip() if told else code})", failed=True)
    return json.loads(score.read_text(encoding="utf-8"))["rows"]


def run_script(name: str, flags: Sequence[str], variables: dict[str, str]) -> tuple[int, list[str]]:
    """Runs a script of scripts/v1_5/eval, passing on what it says; its exit code and what it said, line by line."""
    command = ["bash", str(SCRIPTS / f"{name}.sh"), *flags]
    told = []
    with subprocess.Popen(
        command, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            told.append(line)
            print(line, end="", file=sys.stderr, flush=True)
    return process.returncode, told


def measure_columns(columns: Sequence[Column], args: argparse.Namespace) -> Iterator[Line]:
    """The lines of some columns as they come; a benchmark that fills several runs once."""
    for model, path in {"7B": args.model_7b, "13B": args.model_13b}.items():
        for run in make_runs(args.variants, args.alpha, args.image_size, args.prior):
            scores: dict[str, tuple[Rows | None, str, bool]] = {}
            for column in columns:
                if column.script not in scores:
                    try:
                        scores[column.script] = measure(column.script, run, path, args), "", False
                    except NotMeasured as reason:
                        scores[column.script] = None, str(reason), reason.failed
                rows, note, failed = scores[column.script]
                ours = None if rows is None else column.of_score(rows)
                paper = column.of_paper(model, run.tower)
                yield Line(column.name, model, run.tower, run.settings, paper, ours, note, failed)


def markdown(cells: Sequence[str]) -> str:
    """A line of the table."""
    return "| " + " | ".join(cells) + " |"


def make_parser(names: Sequence[str]) -> argparse.ArgumentParser:
    """The flags of all scripts of the table."""
    parser = OneLineParser(prog="paper", description=f"Compare with the QLIP paper: {', '.join(names)}.")
    parser.add_argument("--model-7b", default=MODELS["7B"], help="folder or hub id (%(default)s)")
    parser.add_argument("--model-13b", default=MODELS["13B"], help="folder or hub id (%(default)s)")
    parser.add_argument("--download", action="store_true", help="fetch weights that are not here")
    parser.add_argument("--eval-dir", type=Path, default=Path("playground/data/eval"), help="the data (%(default)s)")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), metavar="V", help="of clip, qlip, paper (all)")
    parser.add_argument(
        "--alpha", nargs="+", type=real(infinite=True), default=[0.1], metavar="A", help="of the paper's rule (0.1)"
    )
    parser.add_argument("--image-size", nargs="+", type=integer(), default=[672], metavar="PX", help="the same (672)")
    parser.add_argument("--prior", type=Path, help="MLP prior for the paper's rule (default: bicubic positions)")
    parser.add_argument("--protocol", choices=("letter", "likelihood"), default="letter", help="of V* (%(default)s)")
    parser.add_argument("--python", default=sys.executable, help="interpreter that runs the benchmarks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the lines to this file, too")
    parser.add_argument("flags", nargs="*", metavar="-- FLAG", help="flags of the runner, as in -- --batch-size 32")
    return parser


def main(columns: Sequence[Column], argv: Sequence[str] | None = None) -> int:
    """The command of some columns; returns the exit code."""

    def command(args: argparse.Namespace) -> None:
        check_outputs(args, "json")
        lines = []
        print(markdown(HEAD), markdown(["---"] * len(HEAD)), sep="\n", flush=True)
        for line in measure_columns(columns, args):
            lines.append(line)
            print(markdown(line.cells()), flush=True)
        if args.json:
            write_json(args.json, [asdict(line) for line in lines])
        if failed := [line for line in lines if line.failed]:
            raise RuntimeError(f"{len(failed)} of {len(lines)} numbers are missing since a benchmark failed")

    return parse_and_run(make_parser([column.name for column in columns]), command, argv)
