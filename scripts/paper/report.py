"""Numbers of the paper's table: runs the benchmarks and compares their scores with the paper's.

A benchmark is run by its script in scripts/v1_5/eval, which keeps its answers, so that a second run continues the
first. Numbers that cannot be measured, without weights or data, are reported as such.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.command import format_error
from scripts.paper.runs import Run, make_runs, with_settings
from scripts.paper.table import Column

SCRIPTS = Path(__file__).parents[1] / "v1_5" / "eval"
NO_DATA = 3
"""Exit code of a benchmark's script without its data."""

Rows = dict[str, dict[str, float]]


class NotMeasuredError(Exception):
    """A number without weights or data, or whose benchmark failed; the message says which."""

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
    """Why our number is missing."""
    failed: bool = False
    """Whether it is missing because the benchmark failed."""

    def cells(self) -> list[str]:
        """Formats the line for a table."""
        paper = "" if self.paper is None else f"{self.paper:.1f}"
        ours = f"not measured: {self.note}" if self.ours is None else f"{self.ours:.1f}"
        difference = "" if self.ours is None or self.paper is None else f"{self.ours - self.paper:+.1f}"
        return [self.column, self.model, self.tower, self.settings, paper, ours, difference]


def measure(script: str, run: Run, model: str, model_path: str, args: argparse.Namespace) -> Rows:
    """Runs a benchmark's script, which asks what has no answer yet, and reads the score.

    Args:
        script: the benchmark's.
        run: the settings.
        model: its row of the table; part of the run's name, since two checkpoints' folders may be called alike.
        model_path: folder or hub id.
        args: of the command.

    Raises:
        NotMeasuredError: there are no weights or no data, only a part was asked, the checkpoint is damaged, or the
            script failed.
    """
    from llava.model.loading.folder import local_folder

    try:
        checkpoint = local_folder(model_path, local_files_only=not args.download)
    except FileNotFoundError:
        raise NotMeasuredError(f"no weights ({model_path})") from None
    except (OSError, ValueError) as error:
        raise NotMeasuredError(format_error(error), failed=True) from None
    name = f"{model}_{Path(model_path).name}_{run.name}"
    try:
        folder = with_settings(checkpoint, run.qlip, args.eval_dir / "paper" / name)
    except (OSError, ValueError) as error:  # of this checkpoint; another one may be measured
        raise NotMeasuredError(format_error(error), failed=True) from None
    score = args.eval_dir / "paper" / f"{name}_{script}.json"
    score.unlink(missing_ok=True)
    own = {"EVAL_DIR": str(args.eval_dir), "CKPT": name, "SCORE_FILE": str(score), "PYTHON": args.python}
    code, output = run_script(script, ["--model-path", str(folder), *args.flags], own | {"PROTOCOL": args.protocol})
    if code == NO_DATA:
        raise NotMeasuredError(f"no data ({output[0].partition(': ')[2].strip()})")
    if code:
        raise NotMeasuredError(f"{script}.sh failed ({output[-1].strip() if output else code})", failed=True)
    if not score.is_file():  # the script scores no part of a benchmark
        raise NotMeasuredError("--limit: the first questions are answered, and a part has no score")
    return json.loads(score.read_text(encoding="utf-8"))["rows"]


def run_script(name: str, flags: Sequence[str], variables: dict[str, str]) -> tuple[int, list[str]]:
    """Runs a script of scripts/v1_5/eval and passes its output on; returns its exit code and the lines of output."""
    command = ["bash", str(SCRIPTS / f"{name}.sh"), *flags]
    output = []
    with subprocess.Popen(
        command, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            output.append(line)
            print(line, end="", file=sys.stderr, flush=True)
    return process.returncode, output


def measure_columns(columns: Sequence[Column], args: argparse.Namespace) -> Iterator[Line]:
    """Measures some columns, line by line; a benchmark that fills several columns runs once."""
    for model, path in {"7B": args.model_7b, "13B": args.model_13b}.items():
        for run in make_runs(args.variants, args.alpha, args.image_size, args.prior):
            scores: dict[str, tuple[Rows | None, str, bool]] = {}
            for column in columns:
                if column.script not in scores:
                    try:
                        scores[column.script] = measure(column.script, run, model, path, args), "", False
                    except NotMeasuredError as reason:
                        scores[column.script] = None, str(reason), reason.failed
                rows, note, failed = scores[column.script]
                ours = None
                if rows is not None:
                    try:
                        ours = column.of_score(rows)
                        note = column.absent if ours is None else ""
                    except ValueError as error:  # the other columns are measured nevertheless
                        note, failed = str(error), True
                paper = column.of_paper(model, run.tower)
                yield Line(column.name, model, run.tower, run.settings, paper, ours, note, failed)
