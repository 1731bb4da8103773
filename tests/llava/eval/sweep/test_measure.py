"""What a cell of a sweep counts as a right answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.eval.sweep import command, measure

LISTED = "How many?\n(A) 2\n(B) 3"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of answers of each measured cell; every one is "A"."""
    counts: list[int] = []

    def answer(_: Any, pictures: Any, questions: Sequence[Any]) -> list[str]:
        counts.append(len(questions))
        return ["A"] * len(questions)

    monkeypatch.setattr(measure.Answerer, "answer", answer)
    return counts


@pytest.mark.parametrize(("text", "measured"), [(LISTED, [1, 1]), ("How many?", [1])])
def test_cells_of_before_letters_were_read_are_measured_again_where_there_are_letters(
    tmp_path: Path, counted: list[int], text: str, measured: list[int]
) -> None:
    """They had 0 % for labels such as "(A)"."""
    Image.new("RGB", (28, 28)).save(tmp_path / "a.png")
    line = {"question_id": 0, "image": "a.png", "text": text, "answer": "(A)"}
    (tmp_path / "q.jsonl").write_text(json.dumps(line))
    given = ["--question-file", str(tmp_path / "q.jsonl"), "--image-folder", str(tmp_path), "--device", "cpu"]
    arguments = [*given, "--out", str(tmp_path / "out"), "--no-qlip"]
    assert command.main(arguments) == 0
    assert command.main(arguments) == 0
    assert counted == [1]
    results = tmp_path / "out" / "results.jsonl"
    record = json.loads(results.read_text())
    record["task"].pop("by_letter", None)  # as earlier versions wrote it
    results.write_text(json.dumps(record) + "\n")
    assert command.main(arguments) == 0
    assert counted == measured


def test_an_option_counts_by_its_letter_however_label_and_answer_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CV-Bench's labels are "(A)", and models say "A"; each pair is a category, in which "(B)" is wrong."""
    Image.new("RGB", (28, 28)).save(tmp_path / "a.png")
    pairs = list(product(("(A)", "A", "2"), ("A", "(A)", "(A) 2", "2", "The answer is A.")))
    line = {"question_id": 0, "image": "a.png", "text": LISTED}
    lines = [line | {"answer": own, "category": f"{label} {said}"} for label, said in pairs for own in (label, "(B)")]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(measure.Answerer, "answer", lambda *_: [said for _, said in pairs for _ in range(2)])
    given = ["--question-file", str(tmp_path / "q.jsonl"), "--image-folder", str(tmp_path), "--device", "cpu"]
    assert command.main([*given, "--out", str(tmp_path / "out"), "--no-qlip"]) == 0
    found = json.loads((tmp_path / "out" / "results.jsonl").read_text())["categories"]
    assert {name: estimate["mean"] for name, estimate in found.items()} == {f"{a} {b}": 0.5 for a, b in pairs}
