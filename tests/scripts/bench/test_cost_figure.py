"""The bars of costs: they are the page's numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.bench.cost_figure import STAGES, main, read_costs

PAGE = """\
# Cost by stage

demo, float32, 12 turns

| picture | seen by | tokens | prepare | partition | extraction | tower | projector | prefill | decode | total |
|---|---|---|---|---|---|---|---|---|---|---|
| 448 px | CLIP | 64 | 3.81 | – | – | 5.09 | 0.25 | 8.44 | 2.69 | 13.1 |
| 448 px | QLIP as shipped | 97 | 3.86 | 3.48 | 2.15 | 5.59 | 0.28 | 8.40 | 2.93 | 22.2 |

Milliseconds; medians.

vit-l, float32, 3 turns

| picture | seen by | tokens | prepare | partition | extraction | tower | projector | total |
|---|---|---|---|---|---|---|---|---|
| 672 px | QLIP 576, recursive | 570 | 5.88 | 22.2 | 11.5 | – | – | – |
"""


def test_a_row_holds_the_stages_before_the_first_token() -> None:
    clip, qlip, recursive = read_costs(PAGE)
    assert (clip.model, clip.picture, clip.way, clip.tokens) == ("demo", "448 px", "CLIP", "64")
    assert clip.times == {"prepare": 3.81, "tower": 5.09, "projector": 0.25, "prefill": 8.44}
    assert list(qlip.times) == list(STAGES)
    assert (recursive.model, list(recursive.times)) == ("vit-l", ["prepare", "partition", "extraction"])


def test_a_bar_ends_with_the_sum_of_its_stages(tmp_path: Path) -> None:
    (tmp_path / "cost.md").write_text(PAGE, encoding="utf-8")
    assert main(["--page", str(tmp_path / "cost.md"), "--out", str(tmp_path / "cost.svg")]) == 0
    written = re.findall(r">([^<>]+)</text>", (tmp_path / "cost.svg").read_text(encoding="utf-8"))
    assert {"CLIP, 64 tokens", "17.6", "QLIP as shipped, 97 tokens", "23.8"} <= set(written)
    assert not any("recursive" in text for text in written)


def test_the_published_page_has_both_models() -> None:
    rows = read_costs((Path(__file__).parents[3] / "docs" / "results" / "cost.md").read_text(encoding="utf-8"))
    assert {row.model for row in rows} == {"demo", "vit-l"}


def test_a_page_without_costs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cost.md").write_text("nothing", encoding="utf-8")
    assert main(["--page", str(tmp_path / "cost.md"), "--out", str(tmp_path / "cost.svg")]) == 2
    assert "no table of costs" in capsys.readouterr().err
