"""The benchmarks of the engine run, ask both ways the same, and print a line for each."""

from __future__ import annotations

import pytest

from llava.utils import demo_model_path
from scripts.bench import conversation, joining
from tests.scripts.bench.tables import read_table

MODEL = ["--model-path", str(demo_model_path())]


def test_joining_measures_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert joining.main([*MODEL, "--clients", "3", "--requests", "1", "--rounds", "1", "--batch", "2"]) == 0
    rows = read_table(capsys.readouterr().out)
    assert [row[0] for row in rows] == list(joining.WAYS)
    assert all(float(value) > 0 for row in rows for cell in row[1:] for value in cell.split(" / "))


def test_a_conversation_is_measured_turn_by_turn(capsys: pytest.CaptureFixture[str]) -> None:
    assert conversation.main([*MODEL, "--turns", "2", "--rounds", "1", "--tokens", "4", "--size", "112"]) == 0
    told = capsys.readouterr()
    assert [row[0] for row in read_table(told.out)] == ["1", "2"]
    assert told.err.count("turn 2") == 2  # of the picture to warm up, and of the measured one


def test_answers_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "ask", lambda engine, *_: (engine, 1.0, None))
    with pytest.raises(RuntimeError, match="turn 1: the answers differ"):
        conversation.converse({"with": "a", "without": "b"}, None, 1, 4)  # type: ignore[dict-item, arg-type]
