"""Draws curves, bars and heat maps of measurements, small and readable in black and white. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter

STYLES = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"), ("v", "-"), ("x", "--"), ("P", "-."), ("*", ":"))
FILLS = (
    ("#ffffff", ""),
    ("#404040", ""),
    ("#bdbdbd", "xxxx"),
    ("#ffffff", "////"),
    ("#909090", ""),
    ("#e6e6e6", "||||"),
)
"""Shades and hatches of bars' parts; neighbours differ in both lightness and hatch."""
SHADES = LinearSegmentedColormap.from_list("shades", ["#fafafa", "#505050"])
"""Shades of heat maps: no shade is so dark that numbers on it are hard to read."""
GREYS = ("#000000", "#1f5fa8", "#b3541e", "#3c7d3c", "#7b4a9e", "#666666", "#a8901f", "#1fa8a0")
MAX_BARS = 16
"""Most points of a curve whose intervals are drawn as bars; longer curves get a band."""
SVG: dict[Any, Any] = {"svg.hashsalt": "qlip", "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans", "Verdana"]}
"""The same figure has the same bytes; text stays text."""


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
    """At most eight curves; they differ by marker, dash and colour."""
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
    labels. Legends are to the right of the panels, one for neighbours with the same curves.

    Args:
        path: file to write; the suffix decides the format.
        panels: rows of panels, all of one length.

    Raises:
        ValueError: no panels, rows of several lengths, or an unknown suffix.
    """
    if len(widths := {len(row) for row in panels}) != 1 or widths == {0}:
        raise ValueError(f"rows of {[len(row) for row in panels]} panels; they must have one length, at least 1")
    height, width = len(panels), widths.pop()
    names = [[[curve.label for curve in panel.curves] for panel in row] for row in panels]
    beside = [[labels != after for labels, after in zip(row, [*row[1:], None], strict=True)] for row in names]
    longest = max(len(label) for row in names for labels in row for label in labels)
    legends = max(map(sum, beside))
    figure = Figure(
        figsize=(1.0 + 3.8 * width + legends * (0.6 + 0.07 * longest), 0.6 + 2.8 * height), layout="constrained"
    )
    grid = figure.subplots(height, width, sharex="col", sharey="row", squeeze=False)
    for row, places, flags in zip(panels, grid, beside, strict=True):
        for panel, axes, legend in zip(row, places, flags, strict=True):
            _draw_panel(axes, panel, legend)
            axes.label_outer()
    _save(figure, path)


def _draw_panel(axes: Axes, panel: Panel, legend: bool) -> None:
    if panel.mark is not None:
        axes.axvline(panel.mark, color="#999999", linewidth=0.8, linestyle=":", zorder=1)
    for curve, (marker, dash), colour in zip(panel.curves, STYLES, GREYS, strict=False):
        single = len(curve.x) == 1
        errors = None
        if curve.low is not None and curve.high is not None:
            if len(curve.x) <= MAX_BARS:
                errors = np.clip([np.subtract(curve.y, curve.low), np.subtract(curve.high, curve.y)], 0, None)
            else:
                axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.12, linewidth=0)
        axes.errorbar(
            curve.x, curve.y, errors, marker=marker, linestyle="none" if single else dash, color=colour,
            markersize=9 if single else 4, linewidth=1.2, elinewidth=0.8, capsize=2, label=curve.label,
            zorder=3 if single else 2,
        )  # fmt: skip
    if panel.log_x:
        axes.set_xscale("log", base=2)
        low, high = axes.get_xlim()
        if high < 4 * low:  # powers of two alone would leave the axis almost without labels
            axes.xaxis.set_major_locator(LogLocator(base=2, subs=(1.0, 1.25, 1.5, 1.75)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel, title=panel.title)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    if legend and panel.curves:
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)


def plot_heat_map(
    path: str | Path,
    values: Sequence[Sequence[float]] | np.ndarray,
    rows: Sequence[object],
    cols: Sequence[object],
    row_label: str,
    col_label: str,
    value_label: str,
    title: str | None = None,
    line: float | None = None,
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
        line: a thick line separates the cells of at least this value from the others.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.shape != (len(rows), len(cols)):
        raise ValueError(f"values are {table.shape}, but there are {len(rows)} rows and {len(cols)} columns")
    figure = Figure(figsize=(1.8 + 0.65 * len(cols), 1.3 + 0.42 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(table, cmap=SHADES, aspect="auto")
    known = table[np.isfinite(table)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 0.0)
    for row, col in np.argwhere(np.isfinite(table)):
        value = table[row, col]
        ink = "white" if value > low + 0.75 * (high - low) else "black"
        text = f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"
        axes.text(col, row, text, ha="center", va="center", color=ink, fontsize=8)
    axes.set(xlabel=col_label, ylabel=row_label, title=title)
    axes.set_xticks(range(len(cols)), [str(col) for col in cols])
    axes.set_yticks(range(len(rows)), [str(row) for row in rows])
    bar = figure.colorbar(picture, ax=axes, label=value_label)
    if line is not None:
        borders = find_borders(table, line)
        for colour, width in (("white", 5.0), ("black", 2.2)):
            axes.add_collection(LineCollection(borders, colors=colour, linewidths=width, capstyle="projecting"))
            if low <= line <= high:
                bar.ax.axhline(line, color=colour, linewidth=width)
    _save(figure, path)


def find_borders(table: np.ndarray, line: float) -> list[list[tuple[float, float]]]:
    """Finds the borders between cells of at least a value and lower ones.

    Args:
        table: float (R, C); next to NaN there is no border.
        line: the value.

    Returns:
        Segments, each of two points (x, y), where the centre of the cell in row r and column c is (c, r).
    """
    known = np.isfinite(table)
    above = np.where(known, table, -np.inf) >= line
    upright = (above[:, 1:] != above[:, :-1]) & known[:, 1:] & known[:, :-1]
    level = (above[1:] != above[:-1]) & known[1:] & known[:-1]
    segments = [[(col + 0.5, row - 0.5), (col + 0.5, row + 0.5)] for row, col in np.argwhere(upright).tolist()]
    segments += [[(col - 0.5, row + 0.5), (col + 0.5, row + 0.5)] for row, col in np.argwhere(level).tolist()]
    return segments


@dataclass(frozen=True)
class Stacks:
    """Bars over one axis, each of parts laid end to end."""

    rows: Mapping[str, Mapping[str, float]]
    """Lengths of each bar's parts, by label and part, from the top."""
    xlabel: str
    """Name of the axis with its unit."""
    title: str | None = None
    """Line above the bars."""


def plot_stacks(path: str | Path, panels: Sequence[Stacks], parts: Sequence[str]) -> None:
    """Draws stacked bars into an SVG or PNG file, one panel below the other, with a legend for all.

    Args:
        path: file to write; the suffix decides the format.
        panels: bars, each panel over another axis; a bar's whole length is written at its end.
        parts: names of the parts in their order; they differ by shade and hatch. A bar may lack some.

    Raises:
        ValueError: no panels, more parts than can be distinguished, or an unknown suffix.
    """
    if not panels or len(parts) > len(FILLS):
        raise ValueError(f"{len(panels)} panels of {len(parts)} parts; at least 1 panel, at most {len(FILLS)} parts")
    heights = [len(panel.rows) for panel in panels]
    figure = Figure(figsize=(8.0, 0.9 * len(panels) + 0.34 * sum(heights)), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[height + 1 for height in heights])[:, 0]
    for panel, axes in zip(panels, grid, strict=True):
        labels = list(panel.rows)
        ends = np.zeros(len(labels))
        for name, (shade, hatch) in zip(parts, FILLS, strict=False):
            lengths = np.array([panel.rows[label].get(name, 0.0) for label in labels])
            axes.barh(
                labels, lengths, left=ends, color=shade, hatch=hatch, edgecolor="black", linewidth=0.7, label=name
            )
            ends += lengths
        for label, end in zip(labels, ends, strict=True):
            text = f"{end:.{0 if end >= 100 else 1}f}"
            axes.annotate(text, (end, label), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.invert_yaxis()
        axes.set(xlabel=panel.xlabel, title=panel.title, xlim=(0.0, 1.1 * ends.max()))
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
    _save(figure, path)


def figure_path(path: str | Path) -> Path:
    """Converts the path of a figure. Raises ValueError unless it ends in .svg or .png."""
    path = Path(path)
    if path.suffix not in (".svg", ".png"):
        raise ValueError(f"a figure is written as .svg or .png, got {path.name!r}")
    return path


def _save(figure: Figure, path: str | Path) -> None:
    path = figure_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".svg":
        FigureCanvasSVG(figure)
        with rc_context(SVG):
            figure.savefig(path, metadata={"Date": None})
    else:
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=150)
