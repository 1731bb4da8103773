"""Tables of docs/RESULTS.md, made from files of answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playground.questions import V_STAR
from qlip import QLIPConfig
from qlip.tools.intervals import Estimate, mean_interval
from scripts.bench.evidence.answering.answer_log import read_cells
from scripts.bench.evidence.answering.experiments import EXPERIMENTS
from scripts.bench.evidence.answering.scene_sets import GROUND_SETS, KINDS, MEASURES
from scripts.bench.evidence.answering.variants import Way
from scripts.markdown_table import join_values


@dataclass(frozen=True)
class Cell:
    """All checkpoints' answers to one set, seen in one way."""

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

    def cell(self, way: Way, name: str) -> Cell | None:
        """Finds the answers of a way on a set; None where there are none."""
        found = self._cells.get((json.dumps(way.key(self.own), sort_keys=True), name))
        return Cell(list(found.values())) if found else None

    def compare(self, ways: Iterable[Way], sets: Sequence[str]) -> list[list[Cell | None]]:
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


def table(answers: Answers, ways: Sequence[Way], name: str) -> str:
    """Formats a Markdown table of ways on one set; V* of each checkpoint, too, if there are several."""
    cells = [cell for (cell,) in answers.compare(ways, [name])]
    several = any(cell and len(cell.rows) > 1 for cell in cells)
    columns = ["tokens", "GFLOPs", "V*", *(["V* by checkpoint"] if several else []), "count", "existence"]
    lines = [f"| seen by | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for way, cell in zip(ways, cells, strict=True):
        if cell is None:
            lines.append(f"| {way.name} | not measured |{' |' * (len(columns) - 1)}")
            continue
        shares = describe(cell)
        lines.append(f"| {way.name} | {cell.tokens:.1f} | {format_flops(cell.flops)} | {' | '.join(shares)} |")
    return "\n".join(lines)


def describe(cell: Cell) -> list[str]:
    """Formats each of `MEASURES`; behind the first, V*, that of each checkpoint if there are several."""
    texts = [interval(cell.accuracy(kinds)) for kinds in MEASURES.values()]
    if len(cell.rows) > 1:
        texts.insert(1, join_values(cell.by_checkpoint(MEASURES["V*"])))
    return texts


def kind_table(answers: Answers, ways: Sequence[Way], name: str) -> str:
    """Formats a Markdown table of ways on one set: accuracy in each kind of question asked, tokens and FLOPs."""
    cells = {way.name: cell for way, (cell,) in zip(ways, answers.compare(ways, [name]), strict=True)}
    asked = dict.fromkeys(kind for cell in cells.values() if cell for row in cell.rows for kind in row["right"])
    kinds = list(asked or KINDS)
    lines = [f"| seen by | tokens | GFLOPs | {' | '.join(kinds)} |", "|---" * (3 + len(kinds)) + "|"]
    for label, cell in cells.items():
        if cell:
            shares = " | ".join(f"{cell.share((kind,)):.1f}" for kind in kinds)
            lines.append(f"| {label} | {cell.tokens:.1f} | {format_flops(cell.flops)} | {shares} |")
        else:
            lines.append(f"| {label} | not measured |{' |' * (1 + len(kinds))}")
    return "\n".join(lines)


def format_flops(count: float | None) -> str:
    """Formats a number of operations in units of 10^9."""
    return "not counted" if count is None else f"{count / 1e9:.3g}"


def interval(estimate: Estimate) -> str:
    """Formats a mean and its interval."""
    return f"**{estimate.mean:.1f}** [{estimate.low:.1f}, {estimate.high:.1f}]"


def size_table(answers: Answers, ways: Sequence[Way], sets: Sequence[str], kinds: Sequence[str]) -> str:
    """Formats a Markdown table of ways over sets: accuracy in the given kinds, and tokens.

    FLOPs, in units of 10^9, are the mean over the sets that were measured.
    """
    lines = ["| seen by | GFLOPs | " + " | ".join(sets) + " |", "|---" * (len(sets) + 2) + "|"]
    for way, cells in zip(ways, answers.compare(ways, sets), strict=True):
        texts = [f"{c.share(kinds):.1f} ({c.tokens:.0f})" if c else "not measured" for c in cells]
        counts = [cell.flops for cell in cells if cell and cell.flops is not None]
        flops = format_flops(sum(counts) / len(counts) if counts else None)
        lines.append(f"| {way.name} | {flops} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def tables(answers: Answers) -> dict[str, str]:
    """Formats every generated part of the document, by the name of its mark."""
    parts = {
        f"{name}: {chosen}": table(answers, experiment.ways, chosen)
        for name, experiment in EXPERIMENTS.items()
        if name not in ("losses", "equal-flops", "between", "choice")
        for chosen in experiment.sets
    }
    losses, equal, between = EXPERIMENTS["losses"], EXPERIMENTS["equal-flops"], EXPERIMENTS["between"]
    for name, kinds in (("V*", V_STAR), ("count", ("count",)), ("existence", ("existence",))):
        parts[f"losses: {name}"] = size_table(answers, losses.ways, losses.sets, kinds)
        by_size = [chosen for chosen in equal.sets if chosen not in GROUND_SETS]
        parts[f"equal-flops by size: {name}"] = size_table(answers, equal.ways, by_size, kinds)
        parts[f"equal-flops by ground: {name}"] = size_table(answers, equal.ways, GROUND_SETS, kinds)
    for size in dict.fromkeys(name.split(" of ")[0] for name in between.sets):
        sets = [name for name in between.sets if name.startswith(f"{size} of ")]
        parts[f"between: {size}"] = size_table(answers, between.ways, sets, V_STAR)
    for chosen in EXPERIMENTS["rivals"].sets:
        for name in ("rivals", "equal-flops", "dear-rivals"):
            parts[f"{name} by kind: {chosen}"] = kind_table(answers, EXPERIMENTS[name].ways, chosen)
    return parts
