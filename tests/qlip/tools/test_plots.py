"""Figures, by their texts, which stay texts in an SVG."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qlip.tools.plots import (
    FILLS,
    MAX_BARS,
    STYLES,
    Curve,
    Panel,
    Stacks,
    figure_path,
    find_borders,
    plot_curves,
    plot_heat_map,
    plot_panels,
    plot_stacks,
)

LINE = Curve("line", [1, 2, 4], [3.0, 2.0, 1.0])


def texts(path: Path) -> list[str]:
    return re.findall(r"<text [^>]*>(.*?)</text>", path.read_text(encoding="utf-8"))


def test_curves_carry_their_labels_axes_and_title_and_the_legend_is_beside_them(tmp_path):
    """Where no curve can run."""
    path = tmp_path / "new" / "curves.svg"
    plot_curves(path, [LINE, Curve("other", [1, 2], [1.0, 1.5])], "tokens", "accuracy, %", title="a title")
    assert {"line", "other", "tokens", "accuracy, %", "a title"} <= set(texts(path))
    drawn = path.read_text()
    (frame,) = re.findall(r'<g id="patch_2">\s*<path d="M [\d.]+ [\d.]+ \s*L ([\d.]+)', drawn)
    for label in ("line", "other"):
        (left,) = re.findall(rf'<text [^>]*\bx="([\d.]+)"[^>]*>{label}</text>', drawn)
        assert float(left) > float(frame)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_same_figure_has_the_same_bytes(tmp_path, suffix):
    for name in ("a", "b"):
        plot_curves(tmp_path / (name + suffix), [LINE], "x", "y")
    assert (tmp_path / ("a" + suffix)).read_bytes() == (tmp_path / ("b" + suffix)).read_bytes()
    assert suffix == ".svg" or min(Image.open(tmp_path / "a.png").size) > 300


@pytest.mark.parametrize(("count", "kind"), [(MAX_BARS, "bars"), (MAX_BARS + 1, "band")])
def test_intervals_are_bars_and_those_of_many_points_a_band(tmp_path, count, kind):
    points = range(count)
    for name, bounds in (("plain", ()), ("bounded", (list(points), [x + 2 for x in points]))):
        plot_curves(tmp_path / f"{name}.svg", [Curve("line", points, [x + 1 for x in points], *bounds)], "x", "y")
    band = re.compile('id="(FillBetween|PolyCollection)')  # by matplotlib's version
    drawn, plain = (tmp_path / "bounded.svg").read_text(), (tmp_path / "plain.svg").read_text()
    assert (bool(band.search(drawn)), 'id="LineCollection' in drawn) == (kind == "band", kind == "bars")
    assert not band.search(plain) and 'id="LineCollection' not in plain


def test_a_logarithmic_axis_has_plain_numbers(tmp_path):
    plot_curves(tmp_path / "curves.svg", [Curve("line", [64, 128, 256], [1, 2, 3])], "tokens", "y", log_x=True)
    assert {"64", "128", "256"} <= set(texts(tmp_path / "curves.svg"))


def test_panels_share_outer_labels_and_a_legend_that_stays_the_same(tmp_path):
    panels = [[Panel([LINE], f"x {col}", f"y {row}", f"title {row}{col}") for col in range(2)] for row in range(2)]
    panels[0][1] = replace(panels[0][1], curves=[Curve("other", [1, 2], [1, 2])])
    plot_panels(tmp_path / "panels.svg", panels)
    written = texts(tmp_path / "panels.svg")
    for text in ("x 0", "x 1", "y 0", "y 1", "title 00", "title 01", "title 10", "title 11"):
        assert written.count(text) == 1
    assert written.count("line") == 2  # once a row
    assert written.count("other") == 1  # of the one panel that has it


def test_a_mark_is_a_line_more(tmp_path):
    count = {}
    for mark in (None, 2.0):
        plot_panels(tmp_path / "panel.svg", [[Panel([LINE], "x", "y", mark=mark)]])
        count[mark] = len(re.findall(r'id="line2d_', (tmp_path / "panel.svg").read_text()))
    assert count[2.0] == count[None] + 1


def test_a_heat_map_writes_its_numbers_and_leaves_nan_blank(tmp_path):
    values = np.array([[61.24, np.nan, 3.0], [0.0, 99.96, 50.0]])
    plot_heat_map(tmp_path / "map.svg", values, [64, "none"], [0.1, 0.2, 0.4], "budget", "alpha", "accuracy, %", "map")
    written = texts(tmp_path / "map.svg")
    assert {"61.2", "3.0", "0.0", "100.0", "50.0", "64", "none", "0.1", "0.2", "0.4"} <= set(written)
    assert {"budget", "alpha", "accuracy, %", "map"} <= set(written)
    assert "nan" not in written


def test_the_line_of_a_heat_map_runs_between_cells_on_both_sides_of_its_value():
    table = np.array([[1.0, 5.0], [1.0, 2.0], [np.nan, 9.0]])
    assert find_borders(table, 5.0) == [
        [(0.5, -0.5), (0.5, 0.5)],  # between 1 and 5; a cell of the value itself is above
        [(0.5, 0.5), (1.5, 0.5)],  # between 5 and 2
        [(0.5, 1.5), (1.5, 1.5)],  # between 2 and 9; none beside the unknown cell
    ]
    assert find_borders(table, 10.0) == find_borders(table, 0.0) == []


def test_the_line_is_drawn_on_the_map_and_its_scale(tmp_path):
    drawn = {}
    for line in (None, 2.0, 9.0):
        plot_heat_map(tmp_path / "map.svg", [[1, 3]], ["row"], ["a", "b"], "rows", "cols", "values", line=line)
        drawn[line] = (tmp_path / "map.svg").read_text().count("stroke: #000000; stroke-width: 2.2")
    assert drawn == {None: 0, 2.0: 2, 9.0: 0}


STACKS = [
    Stacks(
        {"CLIP": {"prepare": 2.0, "tower": 3.25}, "QLIP": {"prepare": 2.0, "cut": 1.0, "tower": 3.25}}, "ms", "small"
    ),
    Stacks({"CLIP, large": {"tower": 120.0}}, "ms", "large"),
]


def test_stacked_bars_name_bars_and_parts_and_end_with_their_sums(tmp_path):
    plot_stacks(tmp_path / "bars.svg", STACKS, ["prepare", "cut", "tower"])
    written = texts(tmp_path / "bars.svg")
    assert {"CLIP", "QLIP", "CLIP, large", "small", "large", "5.2", "6.2", "120"} <= set(written)
    assert [written.count(name) for name in ("prepare", "cut", "tower")] == [1, 1, 1]


def test_figures_are_small(tmp_path):
    curves = [Curve(f"curve {i}", range(8), [i + x for x in range(8)], range(8), range(2, 10)) for i in range(8)]
    plot_curves(tmp_path / "curves.svg", curves, "tokens", "accuracy, %", log_x=True)
    plot_heat_map(tmp_path / "map.svg", np.eye(8), list(range(8)), list(range(8)), "rows", "cols", "values", line=0.5)
    plot_stacks(tmp_path / "bars.svg", STACKS, ["prepare", "cut", "tower"])
    assert max(file.stat().st_size for file in tmp_path.iterdir()) < 60_000


def test_a_heat_map_of_nothing_but_nan_is_drawn(tmp_path):
    plot_heat_map(tmp_path / "map.svg", [[np.nan]], ["row"], ["col"], "rows", "cols", "values")
    assert {"row", "col"} <= set(texts(tmp_path / "map.svg"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: plot_curves(path, [LINE] * (len(STYLES) + 1), "x", "y"), "9 curves in one panel; at most 8"),
        (lambda path: plot_panels(path, []), r"rows of \[\] panels"),
        (lambda path: plot_panels(path, [[], []]), r"rows of \[0, 0\] panels"),
        (lambda path: plot_panels(path, [[Panel([LINE], "x", "y")], []]), r"rows of \[1, 0\] panels"),
        (lambda path: plot_curves(path.with_suffix(".pdf"), [LINE], "x", "y"), "got 'figure.pdf'"),
        (lambda path: plot_stacks(path, [], ["part"]), "0 panels of 1 parts"),
        (lambda path: plot_stacks(path, STACKS, "abcdefg"), f"at most {len(FILLS)} parts"),
        (lambda path: figure_path("figure"), "as .svg or .png, got 'figure'"),
        (lambda path: plot_heat_map(path, [[1, 2]], ["a"], ["b"], "r", "c", "v"), r"\(1, 2\), but there are 1 rows"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path / "new" / "figure.svg")
    assert list(tmp_path.iterdir()) == []
