"""The benchmark of batches asks both ways the same, and reports what it measured."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from llava.eval.run.answer_file import AnswerFile
from llava.eval.run.pictures import Preparer, prepare_ahead
from llava.eval.run.questions import read_lines
from llava.eval.run.runner import Runner, pictures_of
from llava.model.builder import load_pretrained_model
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import Sampling
from llava.utils import demo_model_path
from scripts.bench.batch import WAYS, Case, measure, report, table, write_questions
from scripts.bench.batch_ways import one_at_a_time, run_batches

CASE = Case("demo", pictures=2, size=224, per_picture=3, new_tokens=24)


def test_both_ways_give_the_same_answers(tmp_path: Path) -> None:
    engine = ChatEngine(*load_pretrained_model(demo_model_path(), device="cpu"))
    questions = read_lines(write_questions(tmp_path, CASE), tmp_path)
    assert len(questions) == 6 and len({question.image for question in questions}) == 2
    runner, asked = Runner(engine, Sampling(0.0, max_new_tokens=24)), list(enumerate(questions))
    preparer = Preparer.of(engine.model.get_vision_tower())
    ready = prepare_ahead(preparer, pictures_of(asked, runner.limits), workers=0, ahead=1)
    together = run_batches(runner, asked, ready, AnswerFile(tmp_path / "a.jsonl"))
    assert together == one_at_a_time(engine, questions, 24)
    assert (tmp_path / "a.jsonl").read_bytes().count(b"\n") == 6


def test_the_ways_take_turns_in_processes_of_their_own(tmp_path: Path) -> None:
    turns = measure(CASE, argparse.Namespace(device="cpu", workers=0, batch_size=4, repeats=2), tmp_path)
    assert {way: len(turns[way]) for way in WAYS} == {way: 2 for way in WAYS}
    row = report(CASE, turns)
    assert row["same"] == 1.0 and row["questions"] == 6
    assert row["ratio"] > 0 and min(row["cpu"]) > 0 and row["memory"][0] > 100


def test_medians_and_ratios_are_of_turns() -> None:
    def turn(seconds: float, cpu: float, answers: list[str]) -> dict:
        return {"seconds": seconds, "cpu": cpu, "answers": answers, "memory": [500.0, 40.0]}

    answers = ["a", "b", "c", "d", "e", "f"]
    first = [turn(6.0, 6.0, answers), turn(12.0, 6.0, answers), turn(9.0, 6.0, answers)]
    second = [turn(2.0, 3.0, answers), turn(3.0, 3.0, answers), turn(9.0, 3.0, [*answers[:5], "x"])]
    row = report(CASE, dict(zip(WAYS, (first, second), strict=True)))
    assert (row["one at a time"], row["runner"]) == pytest.approx((6 / 9, 2.0))
    assert row["ratio"] == 3.0 and row["ratios"] == [3.0, 4.0, 1.0]
    assert row["cpu"] == pytest.approx([1000.0, 500.0]) and row["same"] == pytest.approx(5 / 6)
    assert "| demo | 6 | 3 | 0.67/s | 2.00/s | 3.0 | 1000.0 to 500.0 | 83% | 500 to 500 + 40 a worker |" in table([row])
