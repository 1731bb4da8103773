"""What a sweep shows: a table and figures that hold the records' numbers, and no more figures than are worth it."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava.eval.sweep import plots
from qlip import QLIPConfig
from qlip.tools.plots import Curve

Record = dict[str, Any]


def record(accuracy: float, tokens: float, **settings: Any) -> Record:
    """A cell; without settings CLIP's."""
    estimate = {"mean": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1, "count": 10}
    return {
        "settings": QLIPConfig(**settings).to_dict() if settings else None,
        "accuracy": estimate,
        "categories": {"colour": estimate},
        "tokens": tokens,
        "uniform_tokens": 1024.0,
    }


def grid(**axes: tuple[Any, ...]) -> list[Record]:
    """CLIP and a cell for each choice of values, all of different accuracy and tokens."""
    chosen = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    return [record(0.5, 64)] + [record(0.3 + i / 200, 40 + i, **settings) for i, settings in enumerate(chosen)]


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, ...]]:
    """The heat maps that are drawn, by file name."""
    drawn: dict[str, tuple[Any, ...]] = {}
    monkeypatch.setattr(plots, "plot_heat_map", lambda path, *args: drawn.update({path.name: args}))
    return drawn


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Curve]]:
    """The curves that are drawn, by file name."""
    drawn: dict[str, list[Curve]] = {}
    monkeypatch.setattr(plots, "plot_curves", lambda path, curves, *_, log_x: drawn.update({path.name: list(curves)}))
    return drawn


def test_the_table_is_sorted_by_accuracy_then_by_fewer_tokens_and_names_what_varies() -> None:
    rows = [
        record(0.5, 64),
        record(0.75, 90, alpha=0.2, thumbnail=True),
        record(0.875, 104.25, alpha=0.1, thumbnail=True),
        record(0.75, 80, alpha=float("inf"), thumbnail=True),
    ]
    assert plots.table(rows).splitlines() == [
        "| settings | accuracy, % | 95 % interval | tokens | uniform grid |",
        "|---|---|---|---|---|",
        "| alpha=0.1 | 87.5 | 77.5 to 97.5 | 104.2 | 1024.0 |",
        "| alpha=inf | 75.0 | 65.0 to 85.0 | 80.0 | 1024.0 |",
        "| alpha=0.2 | 75.0 | 65.0 to 85.0 | 90.0 | 1024.0 |",
        "| CLIP | 50.0 | 40.0 to 60.0 | 64.0 | 1024.0 |",
    ]


def test_several_categories_have_a_column_each() -> None:
    row = record(0.5, 64)
    row["categories"]["count"] = {"mean": 0.25}
    assert [line.split(" | ")[-2:] for line in plots.table([row]).splitlines()[::2]] == [
        ["colour", "count |"],
        ["50.0", "25.0 |"],
    ]


def test_a_heat_map_has_each_cell_at_its_alpha_and_budget(maps: dict[str, Any], curves: Any, tmp_path: Path) -> None:
    rows = grid(alpha=(0.2, float("inf"), 0.1), max_tokens=(None, 64))
    del rows[-1]  # alpha=0.1, max_tokens=64
    plots.write_figures(rows, tmp_path)
    assert set(maps) == {"accuracy.svg", "tokens.svg"}
    values, alphas, budgets, *_, title, line = maps["accuracy.svg"]
    assert (alphas, budgets) == (["0.1", "0.2", "inf"], ["64", "none"])
    assert (title, line) == ("CLIP: 50.0 (all cells are lower)", 50.0)
    np.testing.assert_allclose(values, [[np.nan, 32], [30.5, 30], [31.5, 31]])
    np.testing.assert_allclose(maps["tokens.svg"][0], [[np.nan, 44], [41, 40], [43, 42]])


def test_a_heat_map_says_where_clip_lies_among_its_cells() -> None:
    cells = np.array([[60.0, np.nan], [40.0, 50.0]])
    assert plots.describe_line(50.0, cells) == "CLIP: 50.0 (thick line)"
    assert plots.describe_line(40.0, cells) == "CLIP: 40.0 (no lower cell)"
    assert plots.describe_line(60.04, cells) == "CLIP: 60.0 (all cells are lower)"


def test_every_combination_of_the_other_settings_has_its_heat_maps(
    maps: dict[str, Any], curves: Any, tmp_path: Path
) -> None:
    plots.write_figures(grid(alpha=(0.1, 0.2), image_size=(None, 224), mlp=("a/b", "c")), tmp_path)
    kinds = [f"mlp={prior}_image_size={size}" for prior in ("a_b", "c") for size in ("none", 224)]
    swapped = [f"image_size={size}_mlp={prior}" for prior in ("a_b", "c") for size in ("none", 224)]
    assert {name.removeprefix("accuracy-").removesuffix(".svg") for name in maps if "accuracy" in name} in (
        set(kinds),
        set(swapped),
    )
    assert len(maps) == 2 * 4


@pytest.mark.parametrize("axes", [{"alpha": (0.1,)}, {"alpha": (0.1,), "criterion": ("gradient", "random")}])
def test_a_table_of_one_cell_is_no_heat_map(
    maps: dict[str, Any], curves: dict[str, list[Curve]], tmp_path: Path, axes: dict[str, Any]
) -> None:
    plots.write_figures(grid(**axes), tmp_path)
    assert maps == {}
    assert list(curves) == ["accuracy-against-tokens.svg"]


def test_curves_run_along_alpha_by_rising_tokens_and_clip_is_a_point(
    maps: Any, curves: dict[str, list[Curve]], tmp_path: Path
) -> None:
    plots.write_figures(grid(alpha=(0.2, 0.1), max_tokens=(64, None))[::-1], tmp_path)
    clip, *others = curves["accuracy-against-tokens.svg"]
    assert (clip.label, list(clip.x), list(clip.y)) == ("CLIP", [64], [50])
    points = {curve.label: (list(curve.x), list(curve.y)) for curve in others}
    assert set(points) == {"max_tokens=64", "max_tokens=none"}
    assert points["max_tokens=64"][0] == [40, 42]
    assert points["max_tokens=64"][1] == pytest.approx([30, 31])
    assert list(others[0].high or ()) == pytest.approx([y + 10 for y in others[0].y])


def test_without_several_alphas_curves_run_along_the_budget(
    maps: Any, curves: dict[str, list[Curve]], tmp_path: Path
) -> None:
    plots.write_figures(grid(max_tokens=(64, 96, None), layout=("aligned", "centered")), tmp_path)
    assert [curve.label for curve in curves["accuracy-against-tokens.svg"]][1:] == ["layout=aligned", "layout=centered"]


@pytest.mark.parametrize(("with_clip", "sizes"), [(True, [8, 8, 4]), (False, [8, 8, 1])])
def test_no_figure_has_more_than_eight_curves(
    maps: Any, curves: dict[str, list[Curve]], tmp_path: Path, with_clip: bool, sizes: list[int]
) -> None:
    rows = grid(alpha=(0.1, 0.2), max_tokens=tuple(range(60, 77)))
    plots.write_figures(rows if with_clip else rows[1:], tmp_path)
    assert [len(drawn) for drawn in curves.values()] == sizes
    assert list(curves) == [f"accuracy-against-tokens-{i}.svg" for i in (1, 2, 3)]
    if with_clip:
        assert all(drawn[0].label == "CLIP" for drawn in curves.values())
    assert len({curve.label for drawn in curves.values() for curve in drawn} - {"CLIP"}) == 17


@pytest.mark.parametrize("rows", [grid(alpha=(0.1, 0.2)), grid()[:1], grid(alpha=(0.1,))[1:]])
def test_the_figures_are_on_the_disk(tmp_path: Path, rows: list[Record]) -> None:
    files = plots.write_figures(rows, tmp_path)
    assert sorted(files) == sorted(tmp_path.iterdir())
    assert files
    assert all(file.read_text().startswith("<?xml") for file in files)
