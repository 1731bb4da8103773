"""The benchmark of batches asks both ways the same, and reports what it measured."""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llava.utils import demo_model_path
from scripts.bench import batch
from scripts.bench.batch import WAYS, Case, main, measure, report, table, write_questions

CASE = Case("demo", pictures=2, size=112, per_picture=2, new_tokens=8)


def test_both_ways_give_the_same_answers_at_every_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the processes that measure them run, here in this one."""
    options = {"device": "cpu", "checkpoint": str(demo_model_path()), "questions": str(write_questions(tmp_path, CASE))}
    options |= {"new_tokens": CASE.new_tokens, "workers": 0, "batch_size": 4, "share": [1, 0]}
    said = []
    for way in WAYS:
        monkeypatch.setattr("sys.stdin", io.StringIO("go\ngo\n"))
        assert main(["--measure", json.dumps(options | {"way": way})]) == 0
        ready, *turns = capsys.readouterr().out.splitlines()
        assert ready == "ready" and len(turns) == 2
        for turn in map(json.loads, turns):
            assert turn["seconds"] > 0 and turn["cpu"] > 0 and turn["memory"][0] > 100
            said.append(turn["answers"])
    assert len(said[0]) == 4 and all(answers == said[0] for answers in said)


PROCESS = """
import json, sys
print("ready", flush=True)
for number, line in enumerate(sys.stdin):
    print(json.dumps({"way": json.loads(sys.argv[1])["way"], "number": number}), flush=True)
"""


def test_the_ways_take_turns_in_a_process_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[dict, int]] = []

    def start(options: dict) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROCESS, json.dumps(options)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append((options, process.pid))
        return process

    monkeypatch.setattr(batch, "start", start)
    turns = measure(CASE, argparse.Namespace(device="cpu", workers=0, batch_size=4, repeats=2), tmp_path)
    assert turns == {way: [{"way": way, "number": number} for number in range(2)] for way in WAYS}
    assert len({pid for _, pid in started}) == len(WAYS)
    assert all((options["batch_size"], options["new_tokens"]) == (4, 8) for options, _ in started)


SHARE = """
import json, sys
count, number = json.loads(sys.argv[1])["share"]
print("ready", flush=True)
for _ in sys.stdin:
    part = {"seconds": number + 1, "cpu": 2, "memory": [500, 40 * number], "answers": [f"{number + 1} of {count}"]}
    print(json.dumps(part), flush=True)
"""


def test_processes_share_the_runners_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "start", lambda options: subprocess.Popen(
        [sys.executable, "-c", SHARE, json.dumps(options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ))  # fmt: skip
    case = replace(CASE, processes=2)
    turns = measure(case, argparse.Namespace(device="cpu", workers=0, batch_size=4, repeats=1), tmp_path)
    assert turns["one at a time"] == [{"seconds": 1, "cpu": 2, "memory": [500, 0], "answers": ["1 of 1"]}]
    both = {"seconds": 2, "cpu": 4, "memory": [1000, 40], "answers": ["1 of 2", "2 of 2"]}
    assert turns["runner"] == [both]


def test_a_measuring_process_that_ends_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "start", lambda options: subprocess.Popen(
        [sys.executable, "-c", ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ))  # fmt: skip
    with pytest.raises(RuntimeError, match="a measuring process ended"):
        measure(CASE, argparse.Namespace(device="cpu", workers=0, batch_size=4, repeats=1), tmp_path)


def test_medians_and_ratios_are_of_turns() -> None:
    def turn(seconds: float, cpu: float, answers: list[str]) -> dict:
        return {"seconds": seconds, "cpu": cpu, "answers": answers, "memory": [500.0, 40.0]}

    answers = ["a", "b", "c", "d", "e", "f"]
    first = [turn(6.0, 6.0, answers), turn(12.0, 6.0, answers), turn(9.0, 6.0, answers)]
    second = [turn(2.0, 3.0, answers), turn(3.0, 3.0, answers), turn(9.0, 3.0, [*answers[:5], "x"])]
    row = report(replace(CASE, per_picture=3), dict(zip(WAYS, (first, second), strict=True)))
    assert (row["one at a time"], row["runner"]) == pytest.approx((6 / 9, 2.0))
    assert row["ratio"] == 3.0 and row["ratios"] == [3.0, 4.0, 1.0]
    assert row["cpu"] == pytest.approx([1000.0, 500.0]) and row["same"] == pytest.approx(5 / 6)
    assert "| demo | 6 | 3 | 1 | 0.67/s | 2.00/s | 3.0 | 1000.0 to 500.0 | 83.3% | 500 to 500 + 40 a worker |" in table(
        [row]
    )
