"""Formats a sweep's results as a Markdown table, heat maps and curves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qlip.tools.plots import STYLES, Curve, plot_curves, plot_heat_map

Record = dict[str, Any]
"""One cell: `settings` (None for the CLIP tower), `accuracy`, `categories`, `tokens` and more."""

AXES = ("alpha", "max_tokens", "image_size")


def describe(settings: dict[str, Any] | None, names: Sequence[str]) -> str:
    """Formats some of a cell's settings: "alpha=0.1, max_tokens=none"."""
    if settings is None:
        return "CLIP"
    return ", ".join(f"{name}={format_value(settings[name])}" for name in names) or "QLIP"


def format_value(value: Any) -> str:
    """Formats a setting's value as the command line takes it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def find_varying(records: Sequence[Record]) -> list[str]:
    """Finds the settings in which the QLIP cells differ, in the order of `QLIPConfig`."""
    settings = [record["settings"] for record in records if record["settings"] is not None]
    return [name for name in settings[0] if len({row[name] for row in settings}) > 1] if settings else []


def table(records: Sequence[Record]) -> str:
    """Formats a Markdown table, most accurate cell first; of equals, the one with fewer tokens."""
    names = find_varying(records)
    categories = sorted({name for record in records for name in record["categories"]})
    categories = categories if len(categories) > 1 else []
    lines = [
        "| " + " | ".join(["settings", "accuracy, %", "95 % interval", "tokens", "uniform grid", *categories]) + " |"
    ]
    lines.append("|---|" + "---|" * (4 + len(categories)))
    for record in sorted(records, key=lambda record: (-record["accuracy"]["mean"], record["tokens"])):
        accuracy = record["accuracy"]
        texts = [
            describe(record["settings"], names),
            format_percent(accuracy["mean"]),
            f"{format_percent(accuracy['low'])} to {format_percent(accuracy['high'])}",
            f"{record['tokens']:.1f}",
            f"{record['uniform_tokens']:.1f}",
            *(format_percent(record["categories"][name]["mean"]) for name in categories),
        ]
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines)


def format_percent(share: float) -> str:
    """Formats a share in %: 0.125 -> "12.5"."""
    return f"{100 * share:.1f}"


def write_figures(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draws heat maps, one pair for each combination of the other settings, and accuracy against tokens.

    Args:
        records: cells with the same task, at least one; a CLIP cell is marked in the curves, named in the heat maps.
        folder: where the SVG files go.

    Returns:
        The files written.
    """
    return [*_write_heat_maps(records, folder), *_write_curves(records, folder)]


def _write_heat_maps(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draws accuracy and tokens over alpha (rows) and budget (columns); a single cell gets no figure."""
    others = [name for name in find_varying(records) if name not in ("alpha", "max_tokens")]
    clip = next((record for record in records if record["settings"] is None), None)
    files = []
    for label, group in _grouped(records, others).items():
        alphas, budgets = (_values(group, name) for name in ("alpha", "max_tokens"))
        if len(alphas) == len(budgets) == 1:
            continue
        title = [label] if others else []
        for measure, unit in (("accuracy", "accuracy, %"), ("tokens", "mean visual tokens")):
            values = np.full((len(alphas), len(budgets)), np.nan)
            for record in group:
                place = alphas.index(record["settings"]["alpha"]), budgets.index(record["settings"]["max_tokens"])
                values[place] = _number(record, measure)
            line = None if clip is None else _number(clip, measure)
            note = [] if line is None else [describe_line(line, values)]
            file = folder / ("-".join([measure, *map(_file_part, title)]) + ".svg")
            rows, cols = ([format_value(value) for value in axis] for axis in (alphas, budgets))
            text = "\n".join(title + note) or None
            plot_heat_map(file, values, rows, cols, "alpha", "budget (max_tokens)", unit, text, line)
            files.append(file)
    return files


def describe_line(clip: float, values: np.ndarray) -> str:
    """Formats CLIP's number, and where a heat map's cells lie beside it."""
    above = values[np.isfinite(values)] >= clip
    place = "no lower cell" if above.all() else "all cells are lower" if not above.any() else "thick line"
    return f"CLIP: {clip:.1f} ({place})"


def _write_curves(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draws accuracy against tokens along the first axis that varies; the other varying settings make the curves."""
    names = find_varying(records)
    along = next((name for name in AXES if name in names), None)
    curves = [_curve(label, group) for label, group in _grouped(records, [n for n in names if n != along]).items()]
    clip = [_curve("CLIP", [record]) for record in records if record["settings"] is None]
    room = len(STYLES) - len(clip)
    parts = [curves[start : start + room] for start in range(0, len(curves), room)] or [[]]
    files = []
    for number, part in enumerate(parts, start=1):
        file = folder / f"accuracy-against-tokens{f'-{number}' if len(parts) > 1 else ''}.svg"
        title = None if along is None else f"each point a value of {along}"
        plot_curves(file, clip + part, "mean visual tokens per picture", "accuracy, %", title, log_x=True)
        files.append(file)
    return files


def _grouped(records: Sequence[Record], names: Sequence[str]) -> dict[str, list[Record]]:
    """Groups the QLIP cells by their description in these settings."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record["settings"] is not None:
            groups.setdefault(describe(record["settings"], names), []).append(record)
    return groups


def _values(records: Sequence[Record], name: str) -> list[Any]:
    """Finds the values of an axis in rising order; none (unbounded) comes last."""
    values = dict.fromkeys(record["settings"][name] for record in records)
    return sorted(values, key=lambda value: (value is None, float(value or 0)))


def _number(record: Record, measure: str) -> float:
    return 100 * record["accuracy"]["mean"] if measure == "accuracy" else record["tokens"]


def _curve(label: str, records: Sequence[Record]) -> Curve:
    rising = sorted(records, key=lambda record: record["tokens"])
    x = [record["tokens"] for record in rising]
    y, low, high = ([100 * record["accuracy"][key] for record in rising] for key in ("mean", "low", "high"))
    return Curve(label, x, y, low, high)


def _file_part(label: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", label)
