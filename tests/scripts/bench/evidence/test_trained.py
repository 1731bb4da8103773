"""The tables of the model that was trained as LLaVA is: filled from answers, or refused where some are missing."""

from __future__ import annotations

import pytest

from llava.eval.sweep.grid import read_own_settings
from playground.evaluate import CHECKPOINT
from scripts.bench.evidence import trained
from scripts.bench.evidence.answer_log import AnswerLog
from scripts.bench.evidence.experiments import CLIP, EXPERIMENTS, SHIPPED
from scripts.bench.evidence.scene_sets import KINDS

MODEL = CHECKPOINT.parent / "llava-text-demo"
MARKS = "<!-- trained -->\n<!-- end trained -->\n<!-- trained: headline -->\n<!-- end trained: headline -->\n"


@pytest.fixture
def page(tmp_path):
    """A page with empty marks beside answers of four pictures, half of which CLIP's view answers."""
    own, log = read_own_settings(MODEL), AnswerLog(tmp_path / "answers.jsonl")
    for name in EXPERIMENTS["geometry"].sets:
        for way, right, tokens in ((CLIP, "1100", 64), (SHIPPED, "1111", 90), (trained.NATIVE, "1110", 80)):
            log.add(
                {
                    "model": "text", "split": "test", "set": name, "scenes": 4, "way": way.key(own), "seconds": 0.0,
                    "right": dict.fromkeys(KINDS, right), "pictures": dict.fromkeys(KINDS, [0, 1, 2, 3]),
                    "tokens": [tokens] * 4,
                }
            )  # fmt: skip
    (tmp_path / "page.md").write_text(MARKS)
    return tmp_path / "page.md"


def fill(page, *flags: str) -> int:
    return trained.main(["--answers-files", str(page.parent / "answers.jsonl"), "--pages", str(page), *flags])


def test_both_tables_are_filled(page):
    assert fill(page) == 0
    text = page.read_text()
    assert "| 6-12 px | CLIP | 64.0 | **50.0** [0.0, 100.0] |" in text
    assert "| | QLIP, native geometry, noise floor | 80.0 | **75.0** [25.0, 100.0] |" in text.replace("|  |", "| |")
    assert "| 448 px, objects 6-12 px | CLIP | 64 | 50.0 | 50.0 | 50.0 |" in text
    assert "| QLIP | 90 | 100.0 | 100.0 | 100.0 |" in text


def test_a_missing_answer_is_named(page, capsys):
    assert fill(page, "--split", "validation") != 0
    assert "no answers to 'base' seen by 'CLIP'" in capsys.readouterr().err
