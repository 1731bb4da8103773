"""Figures of docs/RESULTS.md, made from files of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from playground.questions import V_STAR
from qlip.tools.intervals import Estimate
from qlip.tools.plots import Curve, plot_curves
from scripts.bench.evidence.experiments import CLIP, EXPERIMENTS
from scripts.bench.evidence.scene_sets import DETAIL_SET, SIZES
from scripts.bench.evidence.tables import Answers


def token_figure(answers: Answers, path: Path) -> None:
    """Draws V* against the number of visual tokens, by the positions in the language model."""
    curves: dict[str, list[tuple[float, Estimate]]] = {}
    for way in EXPERIMENTS["llm-positions"].ways:
        if cell := answers.cell(way, DETAIL_SET):
            curves.setdefault(way.name.rpartition(", ")[0], []).append((cell.tokens, cell.accuracy(V_STAR)))
    if cell := answers.cell(CLIP, DETAIL_SET):
        curves["CLIP"] = [(cell.tokens, cell.accuracy(V_STAR))]
    _draw(path, curves, "visual tokens", "V* (%)")


def size_figure(answers: Answers, kinds: Sequence[str], label: str, path: Path) -> None:
    """Draws accuracy against the size of objects."""
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
