"""The deletion test: the leaves that an attribution weighs most are left out, others at random for comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llava.model.vision.image_tokens import ImageTokens
from qlip.language_positions import ImageSpan
from scripts.bench.evidence.deletion.__main__ import main
from scripts.bench.evidence.deletion.measure import COLUMNS, leave_out, table


def test_the_heaviest_tokens_are_left_out_and_at_least_one():
    tokens = ImageTokens(torch.arange(20.0)[:, None], ImageSpan.sequential(20))
    weights = torch.zeros(20)
    weights[[3, 7, 11]] = torch.tensor([0.2, 0.5, 0.3])
    assert set(range(20)) - set(leave_out(tokens, weights, 0.1).features[:, 0].tolist()) == {7, 11}
    assert len(leave_out(tokens, weights, 0.001).features) == 19


def scene(name: str, number: int, changed: dict[str, list[bool]]) -> dict:
    row = {"model": "m", "split": "validation", "set": name, "scene": number, "share": 0.1}
    return {**row, "kinds": ["count"], "right": [True], "tokens": 90, "changed": changed}


def test_the_table_has_the_share_of_changed_answers_and_both_draws_at_random():
    methods = COLUMNS[1:]
    rows = [
        scene(name, number, {"random": [True], "random again": [False], **dict.fromkeys(methods, [number > 0])})
        for name in ("6-12 px", "mixed/ground photo")
        for number in range(4)
    ]
    _, _, small, photo, both = table(rows).splitlines()
    assert small.startswith("| m | 6-12 px | 4 | 90 | 50.0 (50.0 to 50.0) | 75.0 (")
    assert photo.startswith("| m | ground photo | 4 | 90 | ")
    assert both.startswith("| m | all | 8 | 90 | ")


def test_a_stopped_run_continues_and_fills_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log, page = tmp_path / "log.jsonl", tmp_path / "page.md"
    page.write_text("# Page\n<!-- deletion test -->\n<!-- end deletion test -->\n")
    flags = ["--scenes", "1", "--sets", "12-24 px", "--log", str(log), "--page", str(page)]
    assert main(flags) == 0
    (line,) = log.read_text().splitlines()
    row = json.loads(line)
    assert all(len(marks) == len(row["kinds"]) == 5 for marks in row["changed"].values())
    first = page.read_text()
    assert "| llava-demo | 12-24 px | 1 |" in first
    with log.open("a") as file:
        file.write('{"model": "llava-d')  # the run was stopped in the middle of a line
    assert main(flags) == 0
    assert log.read_text() == line + "\n" and page.read_text() == first
    assert main([*flags, "--report-only"]) == 0
    assert capsys.readouterr().out.count("| llava-demo | all | 1 |") == 3
