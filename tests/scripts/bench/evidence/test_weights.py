"""The tables of weights of small leaves: filled from answers, or refused where some are missing."""

from __future__ import annotations

import pytest

from llava.eval.sweep.grid import read_own_settings
from llava.utils import demo_model_path
from scripts.bench.evidence import weights
from scripts.bench.evidence.answering.answer_log import AnswerLog
from scripts.bench.evidence.answering.experiments import EXPERIMENTS
from scripts.bench.evidence.answering.scene_sets import KINDS

WAYS = {way.name: way for way in EXPERIMENTS["weights"].ways}
SETS = EXPERIMENTS["weights"].sets


def answer(log: AnswerLog, model: str, way: str, right: str, sets=SETS) -> None:
    """Keeps answers of two pictures to all kinds of questions; one set has signs, too."""
    own = read_own_settings(demo_model_path())
    for name in sets:
        kinds = (*KINDS, "sign") if name == "mixed/native signs" else KINDS
        row = {"model": model, "split": "validation", "set": name, "scenes": 2, "way": WAYS[way].key(own)}
        row |= {"right": dict.fromkeys(kinds, right), "pictures": dict.fromkeys(kinds, [0, 1])}
        log.add(row | {"tokens": [64, 66], "seconds": 0.0})


@pytest.fixture
def log(tmp_path):
    (tmp_path / "page.md").write_text("<!-- weights: validation -->\n<!-- end weights: validation -->\n")
    return AnswerLog(tmp_path / "answers.jsonl")


def fill(folder) -> int:
    return weights.main(["--answers-files", str(folder / "answers.jsonl"), "--page", str(folder / "page.md")])


def test_each_checkpoint_is_compared_with_itself_as_shipped(log, tmp_path):
    answer(log, "one", "QLIP, structure", "10")
    answer(log, "other", "QLIP, structure", "11")
    answer(log, "one", "-0.4, 0.0", "11")
    assert fill(tmp_path) == 0
    rows = [line.split("|")[1:-1] for line in (tmp_path / "page.md").read_text().splitlines() if "|" in line][2:]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["other", "0.0", "-0.25", *["100.0"] * 4, "", ""],
        ["one", "0.0", "-0.25", *["50.0"] * 4, "", ""],
        ["one", "-0.4", "0.0", *["100.0"] * 4, "**50.0** [36.1, 64.0]", "**50.0** [0.0, 100.0]"],
    ]


@pytest.mark.parametrize("missing", ["a set", "the shipped way"])
def test_what_was_not_asked_is_named(log, tmp_path, capsys, missing):
    if missing == "a set":
        answer(log, "one", "QLIP, structure", "10", SETS[1:])
    else:
        answer(log, "one", "-0.4, 0.0", "10")
    assert fill(tmp_path) == 2
    words = {"a set": "to 24 of 25 sets by", "the shipped way": "was not asked in the way 'QLIP, structure'"}
    assert words[missing] in capsys.readouterr().err
