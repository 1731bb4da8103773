"""The tables of split cells: filled from answers by size bias, or refused where some are missing."""

from __future__ import annotations

import pytest

from llava.eval.sweep.grid import read_own_settings
from llava.utils import demo_model_path
from scripts.bench.evidence import split_cells
from scripts.bench.evidence.answering.answer_log import AnswerLog
from scripts.bench.evidence.answering.experiments import EXPERIMENTS
from scripts.bench.evidence.answering.scene_sets import KINDS

RIGHT = {"CLIP": "0000", "QLIP, structure": "1000", "split cells kept, 0.0": "1110", "-0.4": "1100"}


@pytest.mark.parametrize(
    ("bias", "shown", "more"), [("0.0", "0.0 / 25.0 / 75.0", "50.0"), ("-0.4", "0.0 / 50.0 / 100.0", "50.0")]
)
def test_towers_with_the_same_bias_are_compared(tmp_path, bias, shown, more, capsys):
    own, log = read_own_settings(demo_model_path()), AnswerLog(tmp_path / "answers.jsonl")
    for name in EXPERIMENTS["split cells"].sets:
        for way in EXPERIMENTS["split cells"].ways:
            row = {"model": "one", "split": "validation", "set": name, "scenes": 4, "way": way.key(own)}
            right = dict.fromkeys(KINDS, RIGHT.get(way.name, "1111"))
            row |= {"right": right, "pictures": dict.fromkeys(KINDS, [0, 1, 2, 3])}
            log.add(row | {"tokens": [64, 66, 68, 70], "seconds": 0.0})
    page, mark = tmp_path / "page.md", f"split cells: validation, {bias}"
    page.write_text(f"<!-- {mark} -->\n<!-- end {mark} -->\n")
    flags = ["--answers-files", str(tmp_path / "answers.jsonl"), "--page", str(page), "--size-bias", bias]
    assert split_cells.main(flags) == 0
    assert page.read_text().splitlines()[-2] == f"| mean |  | {shown} | {shown} | {shown} |  | **{more}** | {more} |"
    assert split_cells.main([*flags, "--split", "series 14100"]) != 0
    assert "there are no answers to 'mixed/native'" in capsys.readouterr().err
