"""What a cell of a sweep counts as a right answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from llava.eval.sweep import command, measure


@pytest.mark.parametrize("label", ["(A)", "A", "2"])
@pytest.mark.parametrize("said", ["A", "(A)", "(A) 2", "2", "The answer is A."])
def test_an_option_counts_by_its_letter_however_label_and_answer_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str, said: str
) -> None:
    """CV-Bench's labels are "(A)", and models say "A"."""
    Image.new("RGB", (28, 28)).save(tmp_path / "a.png")
    line = {"question_id": 0, "image": "a.png", "text": "How many?\n(A) 2\n(B) 3"}
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line | {"answer": own}) + "\n" for own in (label, "(B)")))
    monkeypatch.setattr(measure.Answerer, "answer", lambda *_: [said, said])
    given = ["--question-file", str(tmp_path / "q.jsonl"), "--image-folder", str(tmp_path), "--device", "cpu"]
    assert command.main([*given, "--out", str(tmp_path / "out"), "--no-qlip"]) == 0
    assert json.loads((tmp_path / "out" / "results.jsonl").read_text())["accuracy"]["mean"] == 0.5
