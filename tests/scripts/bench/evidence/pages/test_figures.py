"""The evidence's figures: every curve has the answers' numbers, and what was not measured is not drawn."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from playground.questions import V_STAR
from qlip import QLIPConfig
from qlip.tools.plots import Panel
from scripts.bench.evidence.answering.answer_log import AnswerLog
from scripts.bench.evidence.answering.answers import Answers
from scripts.bench.evidence.answering.experiments import EXPERIMENTS
from scripts.bench.evidence.answering.rival_ways import BUDGET, BUDGETS
from scripts.bench.evidence.answering.scene_sets import DETAIL_SET
from scripts.bench.evidence.answering.variants import CLIP, SHIPPED, Variant
from scripts.bench.evidence.pages import figures
from tests.scripts.bench.evidence.rows import answer_row

RIGHT = {"colour": "1100", "shape": "1111", "relation": "1001", "count": "1000", "existence": "1111"}
BY_BUDGET = {way.name: way for way in EXPERIMENTS["budgets"].ways}


def answers_of(folder: Path, *rows: tuple[Variant, str, int]) -> Answers:
    """Answers of some ways on some sets, each with its number of tokens."""
    for way, name, tokens in rows:
        AnswerLog(folder / "answers.jsonl").add(answer_row(way, "a", RIGHT, name, tokens))
    return Answers([folder / "answers.jsonl"], "test", QLIPConfig())


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list[Panel]:
    """The panels that are drawn."""
    drawn: list[Panel] = []
    monkeypatch.setattr(figures, "plot_panels", lambda path, rows: drawn.extend(panel for row in rows for panel in row))
    return drawn


def test_one_figure_has_every_way_to_few_tokens(tmp_path: Path, panels: list[Panel]) -> None:
    budgets = [way for name, way in BY_BUDGET.items() if name != "CLIP"]
    rows = [(way, DETAIL_SET, int(way.name.rpartition(", ")[2])) for way in budgets]
    figures.token_figure(answers_of(tmp_path, (CLIP, DETAIL_SET, 64), *rows), tmp_path / "tokens.svg")
    correct, count = panels
    labels = ["CLIP", "QLIP", "random quadtree", "resized", "[CLS] pruning", "ToMe merging"]
    assert [curve.label for curve in correct.curves] == [curve.label for curve in count.curves] == labels
    assert list(correct.curves[0].x) == [64]
    assert [list(curve.x) for curve in correct.curves[1:]] == [list(BUDGETS)] * 4 + [[64, 96, 144, 256]]
    assert correct.curves[1].y[0] == pytest.approx(100 * (2 + 4 + 2) / 12)  # of RIGHT's colours, shapes and relations
    assert count.curves[1].y[0] == 25
    assert (count.curves[1].low[0], count.curves[1].high[0]) == (0, 75)  # by the bootstrap over four scenes


def test_at_equal_tokens_the_rivals_answers_are_used_again() -> None:
    """One cell of answers serves both the table of rivals and the figure."""
    own = QLIPConfig()
    rivals = [way.key(own) for way in EXPERIMENTS["rivals"].ways]
    again = [name for name, way in BY_BUDGET.items() if way.key(own) in rivals]
    names = ("QLIP", "random quadtree", "resized", "[CLS] pruning", "ToMe merging")
    assert again == ["CLIP", *(f"{name}, {BUDGET}" for name in names)]


def test_what_was_not_measured_is_not_drawn(tmp_path: Path, panels: list[Panel]) -> None:
    figures.token_figure(answers_of(tmp_path, (CLIP, "base", 64)), tmp_path / "tokens.svg")
    assert panels == []
    figures.position_figure(answers_of(tmp_path), tmp_path / "positions.svg")
    figures.size_figure(answers_of(tmp_path), V_STAR, "V* (%)", tmp_path / "sizes.svg")
    assert [file.name for file in tmp_path.iterdir()] == ["answers.jsonl"]


def test_accuracy_by_size_lies_at_the_mean_size_of_the_objects(tmp_path: Path) -> None:
    rows = [(way, name, 64) for way in (CLIP, SHIPPED) for name in ("6-12 px", "12-24 px")]
    figures.size_figure(answers_of(tmp_path, *rows), V_STAR, "V* (%)", tmp_path / "sizes.svg")
    drawn = (tmp_path / "sizes.svg").read_text(encoding="utf-8")
    assert {"CLIP", "QLIP as shipped", "object size (pixels of 448)"} <= set(re.findall(r">([^<>]+)</text>", drawn))
    assert len(drawn) < 60_000
