"""Draws curves and heat maps of measurements, small and readable in black and white. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter

STYLES = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"), ("v", "-"), ("x", "--"), ("P", "-."), ("*", ":"))
GREYS = ("#000000", "#1f5fa8", "#b3541e", "#3c7d3c", "#7b4a9e", "#666666", "#a8901f", "#1fa8a0")


@dataclass(frozen=True)
class Curve:
    """A line through points, with intervals if `low` and `high` are given; a single point is drawn large."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Panel:
    """Curves over one pair of axes."""

    curves: Sequence[Curve]
    """At most eight; they differ by marker, dash and colour."""
    xlabel: str
    """Name of the axis with its unit; likewise `ylabel`."""
    ylabel: str
    title: str | None = None
    """Line above the panel."""
    log_x: bool = False
    """Logarithmic x axis, labelled with plain numbers."""
    mark: float | None = None
    """Position of a vertical line on the x axis."""

    def __post_init__(self) -> None:
        if len(self.curves) > len(STYLES):
            raise ValueError(f"{len(self.curves)} curves in one panel; at most {len(STYLES)} can be distinguished")


def plot_curves(
    path: str | Path,
    curves: Sequence[Curve],
    xlabel: str,
    ylabel: str,
    title: str | None = None,
    log_x: bool = False,
) -> None:
    """Draws curves into an SVG or PNG file; the parameters are those of `Panel`."""
    plot_panels(path, [[Panel(curves, xlabel, ylabel, title, log_x)]])


def plot_panels(path: str | Path, panels: Sequence[Sequence[Panel]]) -> None:
    """Draws a table of panels into an SVG or PNG file.

    Panels of one row share the y axis, those of one column the x axis; the outer ones have
    labels, and a panel has a legend unless it is that of the panel to the left.

    Args:
        path: file to write; the suffix decides the format.
        panels: rows of panels, all of one length.

    Raises:
        ValueError: no panels, rows of several lengths, or an unknown suffix.
    """
    if len(widths := {len(row) for row in panels}) != 1 or widths == {0}:
        raise ValueError(f"rows of {[len(row) for row in panels]} panels; they must have one length, at least 1")
    height, width = len(panels), widths.pop()
    figure = Figure(figsize=(1.2 + 4.0 * width, 0.6 + 2.8 * height), layout="constrained")
    grid = figure.subplots(height, width, sharex="col", sharey="row", squeeze=False)
    for row, line in zip(panels, grid, strict=True):
        drawn: list[str] = []
        for panel, axes in zip(row, line, strict=True):
            labels = [curve.label for curve in panel.curves]
            _draw_panel(axes, panel, legend=labels != drawn)
            axes.label_outer()
            drawn = labels
    _save(figure, path)


def _draw_panel(axes: Axes, panel: Panel, legend: bool) -> None:
    if panel.mark is not None:
        axes.axvline(panel.mark, color="#999999", linewidth=0.8, linestyle=":", zorder=1)
    for curve, (marker, dash), colour in zip(panel.curves, STYLES, GREYS, strict=False):
        single = len(curve.x) == 1
        axes.plot(
            curve.x, curve.y, marker=marker, linestyle="none" if single else dash, color=colour,
            markersize=9 if single else 4, linewidth=1.2, label=curve.label, zorder=3 if single else 2,
        )  # fmt: skip
        if curve.low is not None and curve.high is not None:
            if single:
                axes.vlines(curve.x, curve.low, curve.high, color=colour, linewidth=1.2)
            else:
                axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.12, linewidth=0)
    if panel.log_x:
        axes.set_xscale("log", base=2)
        low, high = axes.get_xlim()
        if high < 4 * low:  # powers of two alone would leave the axis almost without labels
            axes.xaxis.set_major_locator(LogLocator(base=2, subs=(1.0, 1.25, 1.5, 1.75)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel, title=panel.title)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    if legend:
        axes.legend(fontsize=8, frameon=False)


def plot_heat_map(
    path: str | Path,
    values: Sequence[Sequence[float]] | np.ndarray,
    rows: Sequence[object],
    cols: Sequence[object],
    row_label: str,
    col_label: str,
    value_label: str,
    title: str | None = None,
) -> None:
    """Draws a table as shades of grey with its numbers; NaN stays blank.

    Args:
        path: file to write; the suffix decides the format.
        values: (R, C) numbers.
        rows: names of the R rows.
        cols: names of the C columns.
        row_label: what the rows are, with the unit; likewise `col_label` and `value_label`.
        col_label: see `row_label`.
        value_label: see `row_label`.
        title: line above the figure.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.shape != (len(rows), len(cols)):
        raise ValueError(f"values are {table.shape}, but there are {len(rows)} rows and {len(cols)} columns")
    figure = Figure(figsize=(1.8 + 0.65 * len(cols), 1.3 + 0.42 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(table, cmap="Greys", aspect="auto")
    middle = (np.nanmin(table) + np.nanmax(table)) / 2 if np.isfinite(table).any() else 0.0
    for row, col in np.argwhere(np.isfinite(table)):
        ink = "white" if table[row, col] > middle else "black"
        axes.text(col, row, f"{table[row, col]:.1f}", ha="center", va="center", color=ink, fontsize=8)
    axes.set(xlabel=col_label, ylabel=row_label, title=title)
    axes.set_xticks(range(len(cols)), [str(col) for col in cols])
    axes.set_yticks(range(len(rows)), [str(row) for row in rows])
    figure.colorbar(picture, ax=axes, label=value_label)
    _save(figure, path)


def check_suffix(path: str | Path) -> Path:
    """Converts the path of a figure. Raises ValueError unless it ends in .svg or .png."""
    path = Path(path)
    if path.suffix not in (".svg", ".png"):
        raise ValueError(f"a figure is written as .svg or .png, got {path.name!r}")
    return path


def _save(figure: Figure, path: str | Path) -> None:
    path = check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".svg":
        FigureCanvasSVG(figure)
        with rc_context({"svg.hashsalt": "qlip"}):  # the same figure, the same bytes
            figure.savefig(path, metadata={"Date": None})
    else:
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=150)
