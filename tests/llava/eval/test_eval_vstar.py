"""V* Bench on hand-made answers, scored by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava.eval import eval_vstar
from tests.llava.eval.files import write_answers, write_rows
from tests.llava.eval.scoring import COLOURS, labelled


def test_vstar_by_hand(tmp_path: Path) -> None:
    """Attributes: "B" and "The answer is (A)." right, "purple" unparsed: 2 of 3. Relations: option A's text, but B is
    right: 0 of 1. Overall counts questions, 2 of 4, where the mean over categories would be 33.3."""
    attributes, relations = {"category": "direct_attributes"}, {"category": "relative_position"}
    rows = labelled(
        tmp_path,
        eval_vstar.main,
        [
            ({"text": COLOURS, "label": "B", **attributes}, "B"),
            ({"text": COLOURS, "label": "A", **attributes}, "The answer is (A)."),
            ({"text": COLOURS, "label": "A", **attributes}, "purple"),
            ({"text": COLOURS, "label": "B", **relations}, "red"),
        ],
    )
    assert rows == {
        "attributes": {"accuracy": pytest.approx(200 / 3), "questions": 3, "unparsed": 1},
        "relations": {"accuracy": 0.0, "questions": 1, "unparsed": 0},
        "overall": {"accuracy": 50.0, "questions": 4, "unparsed": 1},
    }


def test_vstar_has_two_categories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = write_rows(
        tmp_path / "q.jsonl", [{"question_id": 0, "text": COLOURS, "label": "A", "category": "colours"}]
    )
    answers = write_answers(tmp_path / "a.jsonl", {0: "A"}, {0: COLOURS})
    flags = ["--question-file", str(questions), "--result-file", str(answers)]
    assert eval_vstar.main(flags) == 2
    assert "category is 'colours'; V* Bench has direct_attributes and relative_position" in capsys.readouterr().err
    write_rows(questions, [{"question_id": 0, "text": COLOURS, "category": "direct_attributes"}])
    assert eval_vstar.main(flags) == 2
    assert "q.jsonl:1: the row has no label" in capsys.readouterr().err


def test_a_label_is_an_option_of_its_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No answer could match another; it is found before anything is answered."""
    row = {"question_id": 0, "image": "i.jpg", "text": COLOURS, "label": "Z", "category": "direct_attributes"}
    questions = write_rows(tmp_path / "q.jsonl", [row])
    assert eval_vstar.main(["--question-file", str(questions), "--check", str(questions)]) == 2
    assert "q.jsonl: question 0: label is 'Z'; it must be an option's letter, one of A, B" in capsys.readouterr().err
