"""The parts of the GPU check, and the lines by which a part's process reports to the command. Imports nothing heavy."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    """One part: it runs in a separate process, within a time limit."""

    name: str
    module: str
    """Its module in this package; `run(model, device, turns)` reports rows and returns the number that failed."""
    title: str
    """Its heading in the report."""
    limit: float
    """Seconds, from the start of its work."""
    turns: int
    """Timed turns."""


PARTS = (
    Part("quadtree", "quadtree", "Quadtree", 90, 3),
    Part("first-token", "first_token", "Time to first token", 75, 6),
    Part("engine", "clients", "Engine under load", 120, 3),
    Part("runner", "runner", "Batch runner", 90, 3),
    Part("tests", "selection", "Tests", 150, 1),
)

LINE = "gpu-check: "
"""Begins a reported row; a row is JSON. A later row of the same key replaces the earlier one."""

Row = dict[str, Any]


def report_row(row: Row) -> None:
    """Prints a row at once, so that a part that is stopped later has not lost it."""
    print(LINE + json.dumps(row), flush=True)


def read_row(line: str) -> Row | None:
    """Reads a reported row, which may follow other output on its line; None for other output alone."""
    _, found, row = line.partition(LINE)
    return json.loads(row) if found and row.startswith("{") else None


def report_each(measurements: Iterable[tuple[str, Callable[[], Row]]]) -> int:
    """Runs measurements and reports a row for each; one that fails is reported with its error, and the next one runs.

    Args:
        measurements: key and measurement of each row.

    Returns:
        The number of those that failed.
    """
    failed = 0
    for key, measure in measurements:
        try:
            report_row({"key": key, **measure()})
        except Exception as error:
            failed += 1
            traceback.print_exc()
            report_row({"key": key, "error": f"{type(error).__name__}: {error}".splitlines()[0]})
    return failed
