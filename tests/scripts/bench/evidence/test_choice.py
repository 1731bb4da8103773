"""Choosing defaults: few enough tokens first, then the least loss, by hand counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.eval.sweep.grid import read_own_settings
from llava.utils import demo_model_path
from qlip import QLIPConfig
from scripts.bench.evidence import choice
from scripts.bench.evidence.answering.experiments import EXPERIMENTS
from scripts.bench.evidence.answering.variants import CLIP
from scripts.bench.evidence.choice import Candidate, best_shares, mean_losses, photograph_tokens, rank, table

CLIP_SHARES = {("a", "count"): 80.0, ("a", "colour"): 50.0}
FINE = Candidate("fine", {("a", "count"): 79.5, ("a", "colour"): 90.0}, 1.2, 1.5)
WEAK = Candidate("weak", {("a", "count"): 70.0, ("a", "colour"): 92.0}, 1.0, 1.0)
DEAR = Candidate("dear", {("a", "count"): 99.0, ("a", "colour"): 99.0}, 1.21, 1.0)
FULL = Candidate("full", {("a", "count"): 99.0, ("a", "colour"): 99.0}, 1.0, 1.51)


def test_what_takes_too_many_tokens_is_no_measure_and_comes_last() -> None:
    assert best_shares(CLIP_SHARES, [FINE, WEAK, DEAR, FULL]) == {("a", "count"): 80.0, ("a", "colour"): 92.0}
    assert [candidate.name for candidate, _ in rank(CLIP_SHARES, [DEAR, WEAK, FULL, FINE])] == [
        "fine",
        "weak",
        "dear",
        "full",
    ]


def test_the_table_shows_the_worst_loss_and_how_many_exceed_a_point() -> None:
    rows = table(CLIP_SHARES, [WEAK, FINE]).splitlines()
    assert rows[2] == "| fine | 1.20 | 1.50 | 84.8 | 1.25 | 2.0 (a, colour) | 1 of 2 |"
    assert rows[3] == "| weak | 1.00 | 1.00 | 81.0 | 5.00 | 10.0 (a, count) | 1 of 2 |"


def test_with_several_checkpoints_each_ones_mean_loss_is_in_the_table() -> None:
    means = [mean_losses(CLIP_SHARES, [WEAK, FINE], 1.2), {"fine": 0.5, "weak": 3.0}]
    rows = table(CLIP_SHARES, [WEAK, FINE], 1.2, means).splitlines()
    assert rows[0].count("|") == rows[1].count("|") == rows[2].count("|")
    assert rows[2] == "| fine | 1.20 | 1.50 | 84.8 | 1.25 | 1.25 / 0.50 | 2.0 (a, colour) | 1 of 2 |"
    assert rows[3].split("|")[6] == " 5.00 / 3.00 "


def test_photographs_are_counted_at_clips_grid_with_the_budget_scaled() -> None:
    assert photograph_tokens(QLIPConfig(alpha=0.0, max_tokens=64), 8) <= 576
    assert photograph_tokens(QLIPConfig(alpha=0.0, max_tokens=64), 8) > 540  # some are smaller than CLIP's input


def test_the_command_ranks_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, wanted = read_own_settings(demo_model_path()), EXPERIMENTS["choice"]
    answers = tmp_path / "answers.jsonl"
    rows = []
    for way, tokens, marks in ((CLIP, 64, "0011"), (wanted.ways[2], 70, "0111")):
        for name in wanted.sets:
            row = {"model": "seed 1", "split": "validation", "set": name, "scenes": 4, "way": way.key(own)}
            row |= {"right": {"count": marks}, "pictures": {"count": [0, 1, 2, 3]}, "tokens": [tokens] * 4}
            rows.append(row | {"seconds": 1.0})
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert choice.main(["--answers-files", str(answers)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if wanted.ways[2].name in line]
    assert line.split("|")[2].strip() == f"{70 / 64:.2f}"
    assert line.split("|")[5:7] == [" 0.00 ", " 0.0 (mixed/native, count) "]
    second = [row | {"model": "seed 2", "right": {"count": "1111"}} for row in rows if row["way"] == rows[0]["way"]]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows + second))  # of CLIP's view alone
    assert choice.main(["--answers-files", str(answers)]) == 0
    assert line in capsys.readouterr().out
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    assert choice.main(["--answers-files", str(answers), "--sets", *wanted.sets[1:]]) == 0
    assert choice.main(["--answers-files", str(answers)]) == 2
    assert "no complete answers of CLIP and a candidate" in capsys.readouterr().err
    assert choice.main(["--answers-files", str(tmp_path / "misspelt.jsonl")]) == 2
    assert "misspelt.jsonl: no such file" in capsys.readouterr().err
