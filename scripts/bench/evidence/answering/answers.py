"""Answers read from files, by way and set, and their accuracy."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlip import QLIPConfig
from qlip.tools.intervals import Estimate, mean_interval
from scripts.bench.evidence.answering.answer_log import read_cells
from scripts.bench.evidence.answering.variants import Variant


@dataclass(frozen=True)
class Cell:
    """All checkpoints' answers to one set, encoded in one way."""

    rows: Sequence[Mapping[str, Any]]
    """Lines of the answers' files, one a checkpoint."""

    @property
    def tokens(self) -> float:
        """Mean number of visual tokens."""
        counts = [count for row in self.rows for count in row["tokens"]]
        return sum(counts) / len(counts)

    @property
    def flops(self) -> float | None:
        """Mean floating-point operations up to the answer's first token; None in files without them."""
        counts = [count for row in self.rows for count in row.get("flops", ())]
        return sum(counts) / len(counts) if counts else None

    def accuracy(self, kinds: Iterable[str]) -> Estimate:
        """Computes the share of right answers in %, with its interval; all answers about a picture are one group."""
        marks = [
            (100.0 * int(mark), picture)
            for row in self.rows
            for kind in kinds
            for mark, picture in zip(row["right"][kind], row["pictures"][kind], strict=True)
        ]
        return mean_interval([mark for mark, _ in marks], [picture for _, picture in marks])

    def share(self, kinds: Iterable[str]) -> float:
        """Computes the share of right answers in %, without the interval, which takes long."""
        marks = [mark for row in self.rows for kind in kinds for mark in row["right"][kind]]
        return 100.0 * marks.count("1") / len(marks)

    def by_checkpoint(self, kinds: Sequence[str]) -> list[float]:
        """Computes the share of right answers of each checkpoint in %, in the order of their names."""
        return [Cell([row]).share(kinds) for row in sorted(self.rows, key=lambda row: row["model"])]

    def of_checkpoint(self, model: str) -> Cell:
        """Takes one checkpoint's answers alone."""
        return Cell([row for row in self.rows if row["model"] == model])


def difference(before: Sequence[Cell], after: Sequence[Cell], kinds: Iterable[str] | None = None) -> Estimate:
    """Computes how many points more are right, with its interval; all answers about a picture are one group.

    Args:
        before: answers to some sets, a cell each.
        after: other answers of the same checkpoints to the same sets.
        kinds: of questions; all that were asked by default.
    """
    marks = []
    for number, (first, second) in enumerate(zip(before, after, strict=True)):
        rows = {row["model"]: row for row in first.rows}
        marks += [
            (100.0 * (int(new) - int(old)), (number, picture))
            for row in second.rows
            for kind, right in row["right"].items()
            if kinds is None or kind in kinds
            for new, old, picture in zip(right, rows[row["model"]]["right"][kind], row["pictures"][kind], strict=True)
        ]
    return mean_interval([mark for mark, _ in marks], [group for _, group in marks])


class Answers:
    """The answers to one split, by way and set."""

    def __init__(self, files: Sequence[Path], split: str, own: QLIPConfig) -> None:
        """
        Args:
            files: of answers, as `run` writes them.
            split: the split to take.
            own: the checkpoints' settings.

        Raises:
            FileNotFoundError: one of the files does not exist.
        """
        self.own = own
        self._cells: dict[tuple[str, str], dict[str, Any]] = {}
        for path in files:
            if not path.is_file():  # `read_cells` takes it for a log that begins
                raise FileNotFoundError(f"{path}: no such file; python -m scripts.bench.evidence.run writes it")
            for _, row in read_cells(path).numbered:
                if row["split"] == split:
                    key = (json.dumps(row["way"], sort_keys=True), row["set"])
                    self._cells.setdefault(key, {})[row["model"]] = row

    def cell(self, way: Variant, name: str) -> Cell | None:
        """Finds the answers of a way on a set; None where there are none."""
        found = self._cells.get((json.dumps(way.key(self.own), sort_keys=True), name))
        return Cell(list(found.values())) if found else None

    def compare(self, ways: Iterable[Variant], sets: Sequence[str]) -> list[list[Cell | None]]:
        """Finds the answers of ways, a list each, on sets, of the checkpoints that were asked in all of them.

        A way on a set that no checkpoint was asked is None, and is no reason to leave a checkpoint out.

        Raises:
            ValueError: there are answers, but no checkpoint was asked in all.
        """
        found = [[self.cell(way, name) for name in sets] for way in ways]
        asked = [{row["model"] for row in cell.rows} for line in found for cell in line if cell]
        common = set.intersection(*asked) if asked else set()
        if asked and not common:
            raise ValueError(f"no checkpoint was asked in all ways that were asked about {', '.join(sets)}")
        return [
            [cell and Cell([row for row in cell.rows if row["model"] in common]) for cell in line] for line in found
        ]
