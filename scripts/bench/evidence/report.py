"""Makes the tables and figures of docs/RESULTS.md from the answers that `run` kept.

`python -m scripts.bench.evidence.report --journals evidence/*.jsonl` writes the table of each experiment between its
marks `<!-- NAME -->` and `<!-- end NAME -->`, and the figures beside. What the journals do not hold is "not measured".
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.command import OneLineParser, parse_and_run
from llava.eval.sweep.cells import own_settings
from llava.utils import demo_model_path
from playground.questions import V_STAR
from qlip import QLIPConfig
from qlip.tools.intervals import Estimate, mean_interval
from qlip.tools.plots import Curve, plot_curves
from scripts.bench.evidence.experiments import CLIP, EXPERIMENTS, SHIPPED
from scripts.bench.evidence.run import JOURNAL, read_cells
from scripts.bench.evidence.sets import DETAIL_SET, KINDS, SIZES, SPLITS
from scripts.bench.evidence.ways import Way


@dataclass(frozen=True)
class Cell:
    """All checkpoints' answers to one set, seen in one way."""

    rows: Sequence[Mapping[str, Any]]
    """The journal's lines, one a checkpoint."""

    @property
    def tokens(self) -> float:
        """Mean number of visual tokens."""
        counts = [count for row in self.rows for count in row["tokens"]]
        return sum(counts) / len(counts)

    def accuracy(self, kinds: Iterable[str]) -> Estimate:
        """Share of right answers in %, with its interval; a picture's answers by all checkpoints are one group."""
        marks = [
            (100.0 * int(mark), picture)
            for row in self.rows
            for kind in kinds
            for mark, picture in zip(row["right"][kind], row["pictures"][kind], strict=True)
        ]
        return mean_interval([mark for mark, _ in marks], [picture for _, picture in marks])

    def share(self, kinds: Iterable[str]) -> float:
        """`accuracy` without its interval, which takes long."""
        marks = [mark for row in self.rows for kind in kinds for mark in row["right"][kind]]
        return 100.0 * marks.count("1") / len(marks)

    def by_checkpoint(self, kinds: Sequence[str]) -> list[float]:
        """Share of right answers of each checkpoint in %, in the order of their names."""
        return [Cell([row]).share(kinds) for row in sorted(self.rows, key=lambda row: row["model"])]


class Answers:
    """The journals' lines of one split, by way and set."""

    def __init__(self, journals: Sequence[Path], split: str, own: QLIPConfig) -> None:
        self.own = own
        self._cells: dict[tuple[str, str], dict[str, Any]] = {}
        for path in journals:
            for _, row in read_cells(path).numbered:
                if row["split"] == split:
                    key = (json.dumps(row["way"], sort_keys=True), row["set"])
                    self._cells.setdefault(key, {})[row["model"]] = row

    def cell(self, way: Way, name: str) -> Cell | None:
        """What is known of a way on a set."""
        found = self._cells.get((json.dumps(way.key(self.own), sort_keys=True), name))
        return Cell(list(found.values())) if found else None


def table(answers: Answers, ways: Sequence[Way], name: str) -> str:
    """A Markdown table of ways on one set."""
    lines = [
        "| seen by | tokens | V* | V* by checkpoint | count | existence |",
        "|---|---|---|---|---|---|",
    ]
    for way in ways:
        cell = answers.cell(way, name)
        if cell is None:
            lines.append(f"| {way.name} | not measured | | | | |")
            continue
        each = " / ".join(f"{value:.1f}" for value in cell.by_checkpoint(V_STAR))
        shares = [interval(cell.accuracy(kinds)) for kinds in (V_STAR, ("count",), ("existence",))]
        lines.append(f"| {way.name} | {cell.tokens:.1f} | {shares[0]} | {each} | {shares[1]} | {shares[2]} |")
    return "\n".join(lines)


def interval(estimate: Estimate) -> str:
    """A mean and its interval, as text."""
    return f"**{estimate.mean:.1f}** [{estimate.low:.1f}, {estimate.high:.1f}]"


def size_table(answers: Answers, ways: Sequence[Way], sets: Sequence[str], kinds: Sequence[str]) -> str:
    """A Markdown table of ways over sets: accuracy in the given kinds, and tokens."""
    lines = ["| seen by | " + " | ".join(sets) + " |", "|---" * (len(sets) + 1) + "|"]
    for way in ways:
        cells = [answers.cell(way, name) for name in sets]
        texts = [f"{c.share(kinds):.1f} ({c.tokens:.0f})" if c else "not measured" for c in cells]
        lines.append(f"| {way.name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def shortfalls(answers: Answers, ways: Sequence[Way], sets: Sequence[str]) -> str:
    """How far each way stays behind the best of all ways listed, over all sets and kinds of question, in points.

    Only ways with at most half as many tokens again as CLIP, on average over the sets, can be that best.
    """
    known = {way.name: [answers.cell(way, name) for name in sets] for way in ways}
    known = {name: cells for name, cells in known.items() if all(cells)}
    if CLIP.name not in known:
        return "not measured"
    tokens = {name: sum(cell.tokens for cell in cells) / len(cells) for name, cells in known.items()}
    accuracy = {
        name: {(i, kind): cell.share((kind,)) for i, cell in enumerate(cells) for kind in KINDS}
        for name, cells in known.items()
    }
    fair = [name for name in known if tokens[name] <= 1.5 * tokens[CLIP.name]]
    lines = [
        "| settings | tokens | mean accuracy | worst against CLIP | mean against the best | worst against the best |",
        "|---|---|---|---|---|---|",
    ]
    rows = []
    for name, shares in accuracy.items():
        behind = {key: max(accuracy[other][key] for other in fair) - share for key, share in shares.items()}
        against_clip = max(accuracy[CLIP.name][key] - share for key, share in shares.items())
        worst = max(behind, key=behind.__getitem__)
        text = (
            f"| {name} | {tokens[name]:.1f} | {sum(shares.values()) / len(shares):.1f} | {against_clip:.1f} "
            f"| {sum(behind.values()) / len(behind):.1f} | {behind[worst]:.1f} ({sets[worst[0]]}, {worst[1]}) |"
        )
        rows.append((sum(behind.values()), text))
    return "\n".join(lines + [text for _, text in sorted(rows)])


def token_figure(answers: Answers, path: Path) -> None:
    """V* against the number of visual tokens, by the positions in the language model."""
    curves: dict[str, list[tuple[float, Estimate]]] = {}
    for way in EXPERIMENTS["llm-positions"].ways:
        if cell := answers.cell(way, DETAIL_SET):
            curves.setdefault(way.name.rpartition(", ")[0], []).append((cell.tokens, cell.accuracy(V_STAR)))
    if cell := answers.cell(CLIP, DETAIL_SET):
        curves["CLIP"] = [(cell.tokens, cell.accuracy(V_STAR))]
    _draw(path, curves, "visual tokens", "V* (%)")


def size_figure(answers: Answers, kinds: Sequence[str], label: str, path: Path) -> None:
    """Accuracy against the size of objects."""
    curves: dict[str, list[tuple[float, Estimate]]] = {}
    for way in EXPERIMENTS["losses"].ways:
        for name, (low, high) in SIZES.items():
            if cell := answers.cell(way, name):
                curves.setdefault(way.name, []).append(((low * high) ** 0.5, cell.accuracy(kinds)))
    _draw(path, curves, "object size (pixels of 448)", label)


def _draw(path: Path, curves: Mapping[str, Sequence[tuple[float, Estimate]]], xlabel: str, ylabel: str) -> None:
    if not curves:
        return
    drawn = [
        Curve(name, [x for x, _ in points], [e.mean for _, e in points], [e.low for _, e in points],
              [e.high for _, e in points])
        for name, points in curves.items()
    ]  # fmt: skip
    plot_curves(path, drawn, xlabel, ylabel, log_x=True)


def tables(answers: Answers, validation: Answers) -> dict[str, str]:
    """Every generated part of the document by the name of its mark; the candidates' is made of the validation split."""
    parts = {
        f"{name}: {chosen}": table(answers, experiment.ways, chosen)
        for name, experiment in EXPERIMENTS.items()
        if name not in ("defaults", "losses")
        for chosen in experiment.sets
    }
    losses, defaults = EXPERIMENTS["losses"], EXPERIMENTS["defaults"]
    for name, kinds in (("V*", V_STAR), ("count", ("count",)), ("existence", ("existence",))):
        parts[f"losses: {name}"] = size_table(answers, losses.ways, ("base", *SIZES, "noise 20", "noise 40"), kinds)
    parts["defaults"] = shortfalls(validation, defaults.ways, defaults.sets)
    parts["frozen"] = shortfalls(answers, [CLIP, SHIPPED], defaults.sets)
    return parts


def fill(text: str, parts: Mapping[str, str]) -> str:
    """Puts the parts between their marks.

    Raises:
        ValueError: the text has a mark that no part fills.
    """

    def part(match: re.Match[str]) -> str:
        if match["name"] not in parts:
            raise ValueError(f"nothing fills the mark {match['name']!r}; parts are {', '.join(parts)}")
        return f"<!-- {match['name']} -->\n{parts[match['name']]}\n<!-- end {match['name']} -->"

    return re.sub(r"<!-- (?P<name>[^\n]+?) -->\n(?:.*?\n)?<!-- end (?P=name) -->", part, text, flags=re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = OneLineParser(prog="report", description="Fill the tables and figures of docs/RESULTS.md.")
    parser.add_argument("--journals", type=Path, nargs="+", default=[JOURNAL], help="files that `run` wrote")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--model-path", default=demo_model_path(), help="whose settings are the shipped ones")
    parser.add_argument("--document", type=Path, default=Path("docs/RESULTS.md"), help="file to fill")
    parser.add_argument("--print", action="store_true", help="print the tables, write nothing")
    return parse_and_run(parser, run, argv)


def run(options: argparse.Namespace) -> None:
    """Writes or prints what the flags name.

    Raises:
        ValueError: a journal is missing, or the document has a mark that nothing fills.
    """
    if missing := [str(path) for path in options.journals if not path.is_file()]:
        raise ValueError(f"there is no journal {', '.join(missing)}; python -m scripts.bench.evidence.run writes one")
    own = own_settings(options.model_path)
    answers = Answers(options.journals, options.split, own)
    parts = tables(answers, Answers(options.journals, "validation", own))
    if options.print:
        for name, part in parts.items():
            print(f"\n## {name}\n\n{part}")
        return
    options.document.write_text(fill(options.document.read_text(encoding="utf-8"), parts), encoding="utf-8")
    figures = options.document.parent / "results"
    token_figure(answers, figures / "tokens.svg")
    size_figure(answers, V_STAR, "V* (%)", figures / "sizes.svg")
    size_figure(answers, ("count",), "counting (%)", figures / "counting.svg")


if __name__ == "__main__":
    sys.exit(main())
