"""GQA on hand-made answers, scored by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.eval import eval_gqa
from tests.llava.eval.files import write_answers, write_json
from tests.llava.eval.scoring import gqa_question


def test_gqa_by_hand(tmp_path: Path) -> None:
    """ "Yes." and "left" right, "a dog" is not "dog", "no" wrong: 2 of 4; binary (verify, choose, logical) 2 of 3, open
    (query) 0 of 1."""
    questions = {
        "07": gqa_question("yes", "verify", "attr"),
        "8": gqa_question("left", "choose", "rel"),
        "9": gqa_question("dog", "query", "obj"),
        "10": gqa_question("yes", "logical", "attr"),
    }
    file = write_json(tmp_path / "q.json", questions)
    write_answers(tmp_path / "a.jsonl", {"10": "no", "07": "Yes.", "8": " left", "9": "a dog"})
    flags = ["--question-file", str(file), "--result-file", str(tmp_path / "a.jsonl")]
    assert eval_gqa.main([*flags, "--json", str(tmp_path / "s.json")]) == 0
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert {name: row["accuracy"] for name, row in rows.items()} == {
        "all": 50.0,
        "binary": pytest.approx(200 / 3),
        "open": 0.0,
        "structure: verify": 100.0,
        "structure: choose": 100.0,
        "structure: query": 0.0,
        "structure: logical": 0.0,
        "about: attr": 50.0,
        "about: rel": 100.0,
        "about: obj": 0.0,
    }


def test_a_number_is_an_answer_to_gqa_as_its_text_is(tmp_path: Path) -> None:
    file = write_json(tmp_path / "q.json", {"1": gqa_question(3, "query", "obj")})
    answers = write_answers(tmp_path / "a.jsonl", {"1": "3"})
    flags = ["--question-file", str(file), "--result-file", str(answers), "--json", str(tmp_path / "s.json")]
    assert eval_gqa.main(flags) == 0
    assert json.loads((tmp_path / "s.json").read_text())["rows"]["all"]["accuracy"] == 100.0


def test_case_and_a_full_stop_do_not_count_in_labels_either(tmp_path: Path) -> None:
    file = write_json(tmp_path / "q.json", {"1": gqa_question("Red.", "query", "attr")})
    answers = write_answers(tmp_path / "a.jsonl", {"1": "red"})
    flags = ["--question-file", str(file), "--result-file", str(answers), "--json", str(tmp_path / "s.json")]
    assert eval_gqa.main(flags) == 0
    assert json.loads((tmp_path / "s.json").read_text())["rows"]["all"]["accuracy"] == 100.0


def test_gqas_questions_need_their_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_json(tmp_path / "q.json", {"1": {"answer": "yes"}})
    answers = write_answers(tmp_path / "a.jsonl", {"1": "yes"})
    assert eval_gqa.main(["--question-file", str(file), "--result-file", str(answers)]) == 2
    assert "question '1': the row has no types" in capsys.readouterr().err
