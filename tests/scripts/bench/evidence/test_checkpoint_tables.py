"""Biases and sweeps of several checkpoints side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.bench.evidence import checkpoint_tables


def write_biases(path: Path, mean: float, sizes: tuple[int, ...] = (70, 112)) -> str:
    kinds = [("mesoscopic", None, mean), ("interpolation", "bicubic", mean / 2)]
    rows = [
        {"measure": measure, "shape": shape, "tiling": "uniform", "mode": mode, "size": size, "mean": value}
        for shape in ("native", "cropped")
        for size in sizes
        for measure, mode, value in kinds
    ]
    path.write_text(json.dumps({"rows": rows}))
    return str(path)


def write_sweep(path: Path, shares: dict[float | None, float]) -> str:
    rows = [
        {
            "settings": None if alpha is None else {"alpha": alpha, "seed": 0},
            "accuracy": {"mean": share},
            "categories": {"count": {"mean": share / 2}},
            "tokens": 64.0 + 10 * share,
        }
        for alpha, share in shares.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text("<!-- biases -->\n<!-- end biases -->\n\n<!-- sweep -->\nas it was\n<!-- end sweep -->\n")
    return path


def test_biases_are_means_over_the_checkpoints_with_each_beside(page: Path, tmp_path: Path) -> None:
    files = [write_biases(tmp_path / name, mean) for name, mean in (("one", 0.5), ("two", 1.0))]
    assert checkpoint_tables.main(["--biases", *files, "--sizes", "112", "--page", str(page)]) == 0
    assert page.read_text() == (
        "<!-- biases -->\n| bias | tiling | interpolation | 112 px |\n|---|---|---|---|\n"
        "| mesoscopic | uniform | none | **0.75** (0.50 / 1.00) |\n"
        "| interpolation | uniform | bicubic | **0.38** (0.25 / 0.50) |\n<!-- end biases -->\n\n"
        "<!-- sweep -->\nas it was\n<!-- end sweep -->\n"
    )


def test_a_sweep_is_its_cells_with_clip_first_whatever_their_order_in_the_files(page: Path, tmp_path: Path) -> None:
    files = [
        write_sweep(tmp_path / "one", {0.4: 0.5, 0.8: 0.25, None: 0.0}),
        write_sweep(tmp_path / "two", {None: 0.1, 0.8: 0.75, 0.4: 1.0}),
    ]
    assert checkpoint_tables.main(["--sweeps", *files, "--page", str(page)]) == 0
    assert page.read_text().splitlines()[6:9] == [
        "| CLIP | 64.5 | 5.0 | 0.0 / 10.0 | 2.5 |",
        "| alpha=0.4 | 71.5 | 75.0 | 50.0 / 100.0 | 37.5 |",
        "| alpha=0.8 | 69.0 | 50.0 | 25.0 / 75.0 | 25.0 |",
    ]


def test_a_checkpoint_that_was_measured_otherwise_is_refused(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [write_biases(tmp_path / "one", 0.5), write_biases(tmp_path / "two", 0.5, sizes=(70,))]
    before = page.read_text()
    assert checkpoint_tables.main(["--biases", *files, "--sizes", "112", "--page", str(page)]) != 0
    assert f"{files[1]} lacks 'mesoscopic, uniform, none, 112 px'" in capsys.readouterr().err
    assert page.read_text() == before
