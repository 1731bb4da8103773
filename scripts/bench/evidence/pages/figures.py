"""Figures of docs/RESULTS.md and README.md, made from files of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from playground.questions import V_STAR
from qlip.tools.intervals import Estimate
from qlip.tools.plots import Curve, Panel, plot_curves, plot_panels
from scripts.bench.evidence.answering.answers import Answers
from scripts.bench.evidence.answering.experiments import EXPERIMENTS
from scripts.bench.evidence.answering.scene_sets import DETAIL_SET, SIZES
from scripts.bench.evidence.answering.variants import CLIP, Variant

Points = Mapping[str, Sequence[tuple[float, Estimate]]]
"""Curves by label, each of x and an accuracy in %."""


def token_figure(answers: Answers, path: Path) -> None:
    """Draws V* and counting against the number of visual tokens, by what makes them few."""
    ways = EXPERIMENTS["budgets"].ways
    panels = [
        Panel(make_curves(points), "visual tokens", "right answers (%)", f"{name}, objects of {DETAIL_SET}", log_x=True)
        for name, kinds in (("V*", V_STAR), ("counting", ("count",)))
        if (points := by_tokens(answers, ways, kinds))
    ]
    if panels:
        plot_panels(path, [panels])


def position_figure(answers: Answers, path: Path) -> None:
    """Draws V* against the number of visual tokens, by the positions in the language model."""
    points = by_tokens(answers, [CLIP, *EXPERIMENTS["llm-positions"].ways], V_STAR)
    if points:
        plot_curves(path, make_curves(points), "visual tokens", "V* (%)", log_x=True)


def size_figure(answers: Answers, kinds: Sequence[str], label: str, path: Path) -> None:
    """Draws accuracy against the size of objects."""
    points: dict[str, list[tuple[float, Estimate]]] = {}
    ways = EXPERIMENTS["sizes"].ways
    for way, cells in zip(ways, answers.compare(ways, [*SIZES]), strict=True):
        for (low, high), cell in zip(SIZES.values(), cells, strict=True):
            if cell:
                points.setdefault(way.name, []).append(((low * high) ** 0.5, cell.accuracy(kinds)))
    if points:
        plot_curves(path, make_curves(points), "object size (pixels of 448)", label, log_x=True)


def by_tokens(answers: Answers, ways: Sequence[Variant], kinds: Sequence[str]) -> Points:
    """Collects accuracy by tokens of ways whose names end in ", TOKENS", a curve for all that begin alike."""
    points: dict[str, list[tuple[float, Estimate]]] = {}
    for way, (cell,) in zip(ways, answers.compare(ways, [DETAIL_SET]), strict=True):
        if cell:
            label = way.name.rpartition(", ")[0] or way.name
            points.setdefault(label, []).append((cell.tokens, cell.accuracy(kinds)))
    return points


def make_curves(points: Points) -> list[Curve]:
    """Builds curves with intervals."""
    return [
        Curve(
            name,
            [x for x, _ in line],
            [accuracy.mean for _, accuracy in line],
            [accuracy.low for _, accuracy in line],
            [accuracy.high for _, accuracy in line],
        )
        for name, line in points.items()
    ]
