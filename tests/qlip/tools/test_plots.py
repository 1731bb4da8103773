"""Figures, by their texts, which matplotlib writes into an SVG as comments."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qlip.tools.plots import STYLES, Curve, Panel, check_suffix, plot_curves, plot_heat_map, plot_panels

LINE = Curve("line", [1, 2, 4], [3.0, 2.0, 1.0])


def texts(path: Path) -> list[str]:
    return re.findall(r"<!-- (.*?) -->", path.read_text(encoding="utf-8"))


def test_curves_carry_their_labels_axes_and_title(tmp_path):
    path = tmp_path / "new" / "curves.svg"
    plot_curves(path, [LINE, Curve("other", [1, 2], [1.0, 1.5])], "tokens", "accuracy, %", title="a title")
    assert {"line", "other", "tokens", "accuracy, %", "a title"} <= set(texts(path))


def test_a_png_is_a_picture(tmp_path):
    plot_curves(tmp_path / "curves.png", [LINE], "x", "y")
    assert min(Image.open(tmp_path / "curves.png").size) > 300


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_same_figure_has_the_same_bytes(tmp_path, suffix):
    for name in ("a", "b"):
        plot_curves(tmp_path / (name + suffix), [LINE], "x", "y")
    assert (tmp_path / ("a" + suffix)).read_bytes() == (tmp_path / ("b" + suffix)).read_bytes()


@pytest.mark.parametrize(("curve", "drawn"), [(LINE, 0), (Curve("line", [1, 2], [1, 2], [0, 1], [2, 3]), 1)])
def test_an_interval_is_a_band_round_its_line(tmp_path, curve, drawn):
    plot_curves(tmp_path / "curves.svg", [curve], "x", "y")
    assert len(re.findall(r'id="FillBetween', (tmp_path / "curves.svg").read_text())) == drawn


def test_the_interval_of_a_single_point_is_a_bar(tmp_path):
    plot_curves(tmp_path / "curves.svg", [Curve("point", [1], [1], [0], [2])], "x", "y")
    figure = (tmp_path / "curves.svg").read_text()
    assert 'id="LineCollection' in figure and 'id="FillBetween' not in figure


def test_a_logarithmic_axis_has_plain_numbers(tmp_path):
    plot_curves(tmp_path / "curves.svg", [Curve("line", [64, 128, 256], [1, 2, 3])], "tokens", "y", log_x=True)
    assert {"64", "128", "256"} <= set(texts(tmp_path / "curves.svg"))


def test_panels_share_outer_labels_and_a_legend_that_stays_the_same(tmp_path):
    panels = [[Panel([LINE], f"x {col}", f"y {row}", f"title {row}{col}") for col in range(2)] for row in range(2)]
    plot_panels(tmp_path / "panels.svg", panels)
    written = texts(tmp_path / "panels.svg")
    for text in ("x 0", "x 1", "y 0", "y 1", "title 00", "title 01", "title 10", "title 11"):
        assert written.count(text) == 1
    assert written.count("line") == 2  # once a row
    panels[0][1] = Panel([Curve("other", [1, 2], [1, 2])], "x", "y")
    plot_panels(tmp_path / "panels.svg", panels)
    assert {"line", "other"} <= set(texts(tmp_path / "panels.svg"))


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
        (lambda path: check_suffix("figure"), "as .svg or .png, got 'figure'"),
        (lambda path: plot_heat_map(path, [[1, 2]], ["a"], ["b"], "r", "c", "v"), r"\(1, 2\), but there are 1 rows"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path / "new" / "figure.svg")
    assert list(tmp_path.iterdir()) == []
