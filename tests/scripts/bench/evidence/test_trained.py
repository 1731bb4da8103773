"""The table of two recipes: filled from answers, or refused where some are missing."""

from __future__ import annotations

import pytest

from llava.eval.sweep.grid import read_own_settings
from llava.utils import demo_model_path
from scripts.bench.evidence import trained
from scripts.bench.evidence.answering.answer_log import AnswerLog
from scripts.bench.evidence.answering.experiments import EXPERIMENTS
from scripts.bench.evidence.answering.scene_sets import KINDS

RIGHT = {"CLIP": "1100", "QLIP, the paper's geometry": "1111", "QLIP": "1110"}


@pytest.fixture
def page(tmp_path):
    """A page with an empty mark beside answers of four pictures; the second seed's are all right, the other recipe's
    all wrong."""
    own, log = read_own_settings(demo_model_path()), AnswerLog(tmp_path / "answers.jsonl")
    for name in EXPERIMENTS["geometry"].sets:
        for label, way in trained.WAYS.items():
            seeds = {"trained": RIGHT[label], "trained-2": "1111", "trained-3": RIGHT[label]}
            for model, right in {**seeds, "joint": "0000"}.items():
                row = {"model": model, "split": "test", "set": name, "scenes": 4, "way": way.key(own), "seconds": 0.0}
                row |= {"right": dict.fromkeys(KINDS, right), "pictures": dict.fromkeys(KINDS, [0, 1, 2, 3])}
                log.add(row | {"tokens": [64] * 4})
    (tmp_path / "page.md").write_text("<!-- trained -->\n<!-- end trained -->\n")
    return tmp_path / "page.md"


def fill(page, *flags: str) -> int:
    return trained.main(["--answers-files", str(page.parent / "answers.jsonl"), "--page", str(page), *flags])


def test_both_recipes_are_compared(page):
    assert fill(page) == 0
    text = page.read_text()
    mean, none = "**66.7** [33.3, 100.0]", "**0.0** [0.0, 0.0]"
    seeds = "50.0 / 100.0 / 50.0"
    assert f"| 6-12 px | CLIP | 64.0 | {' | '.join([mean, seeds, mean, mean, none, none, none])} |" in text
    assert "|  | QLIP | 64.0 | **83.3** [50.0, 100.0] | 75.0 / 100.0 / 75.0 |" in text


def test_a_missing_answer_is_named(page, capsys):
    assert fill(page, "--split", "validation") != 0
    assert "no answers of 'joint' to 'base' seen by 'CLIP'" in capsys.readouterr().err


def test_other_recipes_are_compared_under_their_own_mark(page, capsys):
    page.write_text(page.read_text() + "<!-- two-cores -->\n<!-- end two-cores -->\n")
    assert fill(page, "--mark", "two-cores", "--recipes", "two cores=joint", "a GPU=trained,trained-3") == 0
    text = page.read_text()
    assert text.startswith("<!-- trained -->\n<!-- end trained -->\n")
    assert "| V*, two cores | count, two cores | existence, two cores | V*, a GPU | of each seed |" in text
    with pytest.raises(SystemExit):
        fill(page, "--recipes", "two cores")
    assert "'two cores' is not LABEL=MODEL[,MODEL]" in capsys.readouterr().err
