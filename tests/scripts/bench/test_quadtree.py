"""The quadtree's benchmark: its peer gives the same leaves, and its page has all ratios."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import qlip
from scripts.bench import quadtree, quadtree_times
from scripts.bench.naive_quadtree import naive_partition, structure_score
from scripts.bench.preparation_times import Preparation, measure_preparation, preparation_table
from scripts.bench.quadtree_times import RULES, Row, check_equal, measure, photograph, table


@pytest.mark.parametrize("criterion", RULES)
@pytest.mark.parametrize("size", [224, 448])
def test_the_recursive_quadtree_gives_the_leaves_and_patches_of_ours(criterion: str, size: int) -> None:
    count, patches = check_equal(photograph("coffee", size), criterion)
    assert patches.shape == (count, 3, 14, 14)


@pytest.mark.parametrize(("order", "budget"), [("score", 100), ("side", 100), ("side", None)])
def test_its_structure_has_levels_budgets_and_orders(order: str, budget: int | None) -> None:
    image = photograph("rocket", 448)
    options = {"max_tokens": budget, "split_order": order}
    rule = {"criterion": "structure", "structure_size": 5, "coarsest": "any"}
    leaves = qlip.partition(image, alpha=1.2, **rule, **options).boxes.tolist()
    assert list(map(tuple, leaves)) == naive_partition(image, 14, 1.2, structure_score, **options)
    assert len({size for *_, size in leaves}) > 2
    assert budget is None or len(leaves) > budget - 3  # all of it is spent


def test_other_leaves_are_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(quadtree_times.SCORES, "gradient", lambda image, patch_size, box: 0.0)
    with pytest.raises(RuntimeError, match="different leaves"):
        check_equal(photograph("coffee", 224), "gradient")


def test_a_row_is_measured_and_its_ratios_are_those_of_its_times() -> None:
    row = measure("structure", 224, 1, nullcontext)
    assert min(row.partition, row.patches, row.copy, row.naive, row.slowdown) > 0
    given = Row("structure", 224, 256, partition=1.0, patches=3.0, copy=2.0, naive=44.0, slowdown=1.5, compiled=5.0)
    assert table([given]).splitlines()[-1].endswith("| 1.0 | 3.0 | 2.0 | 2.0 | 44 | 11.0 | 1.5 | 5.0 | 2.5 | 8.8 |")
    assert table([replace(given, compiled=None)]).splitlines()[-1].endswith("| 11.0 | 1.5 | - | - | - |")


def test_the_command_keeps_cores_busy_and_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--sizes", "224", "--criteria", "gradient", "--photographs", "500x300", "--repeats", "1"]
    flags += ["--out", str(tmp_path)]
    threads = torch.get_num_threads()
    assert quadtree.main([*flags, "--machine", "A machine", "--threads", str(threads)]) == 0
    page = (tmp_path / "quadtree.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    assert "A machine; torch" in page and "the default settings" not in page
    assert [line for line in page.splitlines() if line.startswith("| 224 px | ")]
    assert page.splitlines()[-1].startswith("| 500 x 300 | ")


def test_all_of_the_preparation_is_measured_against_clips() -> None:
    row = measure_preparation((500, 300), 1)
    assert row.tokens > 24 * 14
    assert min(row.cut, row.clip, row.ratio) > 0
    given = Preparation((500, 300), 600, cut=12.0, compiled=9.0, clip=4.0, ratio=3.1, compiled_ratio=2.2)
    assert preparation_table([given]).splitlines()[-1] == "| 500 x 300 | 600 | 12.0 | 9.0 | 4.0 | 3.1 | 2.2 |"
