"""The tables of the orders of splits: filled from answers, or refused where some are missing."""

from __future__ import annotations

import pytest

from llava.eval.sweep.grid import read_own_settings
from llava.utils import demo_model_path
from scripts.bench.evidence import order
from scripts.bench.evidence.answering.answer_log import AnswerLog
from scripts.bench.evidence.answering.experiments import EXPERIMENTS
from scripts.bench.evidence.answering.scene_sets import KINDS

RIGHT = {"CLIP": "0000", "score, 128": "1000", "side, 128": "1110"}
MARKS = ("order: validation, 128", "order: validation, budgets")


@pytest.fixture
def page(tmp_path):
    """A page with empty marks beside answers of four pictures to all kinds of questions; one set has signs, too."""
    own, log = read_own_settings(demo_model_path()), AnswerLog(tmp_path / "answers.jsonl")
    for name in EXPERIMENTS["order"].sets:
        kinds = (*KINDS, "sign") if name == "mixed/native signs" else KINDS
        for way in EXPERIMENTS["order"].ways:
            for model in ("one", "other"):
                right = "1111" if model == "other" and way.name == "side, 128" else RIGHT.get(way.name, "1100")
                row = {"model": model, "split": "validation", "set": name, "scenes": 4, "way": way.key(own)}
                row |= {"right": dict.fromkeys(kinds, right), "pictures": dict.fromkeys(kinds, [0, 1, 2, 3])}
                log.add(row | {"tokens": [64, 66, 68, 70], "seconds": 0.0})
    (tmp_path / "page.md").write_text("".join(f"<!-- {mark} -->\n<!-- end {mark} -->\n" for mark in MARKS))
    return tmp_path / "page.md"


def fill(page, *flags: str) -> int:
    return order.main(["--answers-files", str(page.parent / "answers.jsonl"), "--page", str(page), *flags])


def test_both_orders_are_compared_set_by_set_and_on_average(page):
    assert fill(page) == 0
    rows = [line for line in page.read_text().splitlines() if line.startswith("|")]
    values = "0.0 / 25.0 / 87.5"
    # One answers two more of four pictures, the other three; of the first picture both had both orders right.
    assert f"| native | 67.0 | {values} | {values} | {values} |  | **62.5** [25.0, 100.0] | 50.0 / 75.0 |" in rows
    signs = next(row for row in rows if row.startswith("| native signs |"))
    assert signs.count(values) == 4
    assert rows[-1] == f"| mean |  | {values} | {values} | {values} | {values} | **62.5** | 50.0 / 75.0 |"


def test_means_over_the_sets_are_listed_by_budget(page):
    assert fill(page, "--budgets") == 0
    text = page.read_text()
    assert "| side, 128 | 67.0 | 87.5 | 87.5 | 87.5 | 87.5 |" in text
    assert "| side, 76 | 67.0 | 50.0 | 50.0 | 50.0 | 50.0 |" in text


def test_missing_answers_are_named(page, capsys):
    assert fill(page, "--split", "series 13500") != 0
    assert "there are no answers to 'mixed/native' in all of CLIP, score, 128, side, 128" in capsys.readouterr().err
    assert fill(page, "--split", "series 13500", "--budgets") != 0
    assert "there are no answers to 25 of the sets by 'CLIP'" in capsys.readouterr().err
