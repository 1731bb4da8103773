"""What all scorers share: a score's form, counting by groups, and the command around a scorer.

A scorer is a pure function from rows to a `Score`; its command reads the files, prints the score as a table and writes
it with `--json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.command import OneLineParser, check_outputs, parse_and_run

Table = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Score:
    """The result of a benchmark."""

    benchmark: str
    """Its name."""

    rows: Table
    """Group of questions -> measure -> value: shares in %, points as the benchmark gives them, counts as integers."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"benchmark": self.benchmark, "rows": {name: dict(row) for name, row in self.rows.items()}}

    def table(self) -> str:
        """The score for people: a line a group, a column a measure."""
        columns = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        lines = [[self.benchmark, *columns]]
        lines += [[name, *(_number(row.get(column)) for column in columns)] for name, row in self.rows.items()]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
            )
            for line in lines
        )


def accuracy(right: Sequence[bool | float]) -> dict[str, float]:
    """Mean in % and count of at least one question."""
    if not right:
        raise ValueError("there is no question to score")
    return {"accuracy": 100 * sum(right) / len(right), "questions": len(right)}


def accuracy_by(right: Sequence[bool | float], groups: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean in % and count of each group, in the groups' order of appearance."""
    found: dict[str, list[bool | float]] = {}
    for value, group in zip(right, groups, strict=True):
        found.setdefault(group, []).append(value)
    return {group: accuracy(values) for group, values in found.items()}


def score_parser(prog: str, description: str, result_file: bool = True) -> argparse.ArgumentParser:
    """A scorer's parser, with the flags that all have."""
    parser = OneLineParser(prog=prog, description=description)
    if result_file:
        parser.add_argument("--result-file", type=Path, required=True, help="answers, as the runner writes them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the score to this file, too")
    return parser


def run_scorer(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], Score],
    argv: Sequence[str] | None,
    outputs: Sequence[str] = (),
) -> int:
    """Runs a scorer's command line and returns the exit code.

    Args:
        parser: from `score_parser`.
        measure: reads the files that the flags name and scores them.
        argv: the command line.
        outputs: attributes of the flags for more files that `measure` writes.
    """

    def print_score(args: argparse.Namespace) -> None:
        check_outputs(args, "json", *outputs)
        score = measure(args)
        print(score.table())
        if args.json:
            write_json(args.json, score.to_dict())

    return parse_and_run(parser, print_score, argv)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.2f}"
