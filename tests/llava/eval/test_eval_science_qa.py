"""ScienceQA on hand-made answers, scored by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.eval import eval_science_qa
from tests.llava.eval.files import write_answers, write_json
from tests.llava.eval.scoring import rows_of, science_files


def test_science_qa_by_hand(tmp_path: Path) -> None:
    """1 "A" right; 2 "B. gold" right; 3 "iron" wrong; 4 "The answer is C." wrong. All 2/4, IMG 1/2 (1, 3), TXT 1/2
    (1, 4), NO 1/1 (2), NAT 2/2, SOC 0/1, LAN 0/1, G1-6 1/2 (1, 3), G7-12 1/2 (2, 4)."""
    flags = science_files(tmp_path)
    write_answers(tmp_path / "a.jsonl", {"1": "A", "2": "B. gold", "3": "iron", "4": "The answer is C.", "5": "A"})
    out = [f"--output-{name}={tmp_path / f'{name}.json'}" for name in ("file", "result")]
    rows = rows_of(tmp_path, eval_science_qa.main, *flags, *out)
    share = {name: (row["accuracy"], row["questions"]) for name, row in rows.items()}
    assert share == {
        "all": (50.0, 4),
        "IMG": (50.0, 2),
        "TXT": (50.0, 2),
        "NO": (100.0, 1),
        "NAT": (100.0, 2),
        "SOC": (0.0, 1),
        "LAN": (0.0, 1),
        "G1-6": (50.0, 2),
        "G7-12": (50.0, 2),
    }
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["acc"], result["correct"], result["count"]) == (50.0, 2, 4)
    assert result["results"] == {"1": 0, "2": 1, "3": 0, "4": 2}
    kinds = json.loads((tmp_path / "file.json").read_text())
    assert [row["question_id"] for row in kinds["incorrect"]] == ["3", "4"]


def test_an_answer_to_science_qa_that_names_no_choice_is_wrong_and_counted(tmp_path: Path) -> None:
    flags = science_files(tmp_path)
    write_answers(tmp_path / "a.jsonl", {"1": "E", "2": "", "3": "wood", "4": "A or B"})
    assert rows_of(tmp_path, eval_science_qa.main, *flags)["all"] == {"accuracy": 25.0, "questions": 4, "unparsed": 3}


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("val", "split 'val' of .* is empty"),
        ("dev", "has no split 'dev'; it has test, train, val"),
        ("train", "lacks the answers to 1 of 1 questions, for example '5'"),
    ],
)
def test_a_split_of_science_qa_must_be_there(tmp_path: Path, split: str, words: str) -> None:
    flags = science_files(tmp_path)
    answers = write_answers(tmp_path / "a.jsonl", {"1": "A"})
    parsed = type("Args", (), {"base_dir": Path(flags[1]), "split": split, "result_file": answers, "options": "ABCDE"})
    with pytest.raises(ValueError, match=words):
        eval_science_qa.score_files(parsed)


def change(flags: list[str], **fields: object) -> Path:
    """Changes fields of problem 1, and leaves it alone in the split; returns the folder."""
    base = Path(flags[1])
    problems = json.loads((base / "problems.json").read_text())
    problems["1"] |= fields
    write_json(base / "problems.json", problems)
    write_json(base / "pid_splits.json", {"test": [1]})  # a number, as some files have it
    return base


@pytest.mark.parametrize(
    "fields",
    [
        {"answer": "1"},
        {"answer": 1.0, "image": {"path": "a.png"}},
        {"answer": 1, "hint": None},
        {"answer": 1, "choices": [1, 2]},
    ],
)
def test_a_problem_is_scored_as_others_write_it(tmp_path: Path, fields: dict) -> None:
    flags = science_files(tmp_path)
    change(flags, **fields)
    write_answers(tmp_path / "a.jsonl", {"1": "B"})
    assert rows_of(tmp_path, eval_science_qa.main, *flags)["all"]["accuracy"] == 100.0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"answer": 7}, "answer is 7; it must be the index of a choice, 0 to"),
        ({"answer": "A"}, "answer is 'A'; it must be the index of a choice, 0 to"),
        ({"answer": None}, "answer is None; it must be the index of a choice, 0 to"),
        ({"choices": "AB"}, "choices is 'AB'; it must be a list of texts"),
        ({"hint": 3}, "hint is 3; it must be text"),
        ({"grade": "college"}, "grade is 'college'; it must be 'grade1' to 'grade12'"),
        ({"grade": None}, "grade is None; it must be 'grade1' to 'grade12'"),
    ],
)
def test_a_wrong_problem_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: dict, words: str) -> None:
    flags = science_files(tmp_path)
    change(flags, **fields)
    answers = write_answers(tmp_path / "a.jsonl", {"1": "B"})
    assert eval_science_qa.main([*flags, "--result-file", str(answers)]) == 2
    assert f"problems.json: problem '1': {words}" in capsys.readouterr().err


def test_every_choice_has_a_letter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = science_files(tmp_path)
    change(flags, choices=list("uvwxyz"), answer=5)
    answers = write_answers(tmp_path / "a.jsonl", {"1": "F"})
    assert eval_science_qa.main([*flags, "--result-file", str(answers)]) == 2
    assert "problem '1' has 6 choices; --options names 5 letters, ABCDE" in capsys.readouterr().err
    assert rows_of(tmp_path, eval_science_qa.main, *flags, "--options", *"ABCDEF")["all"]["accuracy"] == 100.0


def test_a_problem_that_the_split_names_must_be_there(tmp_path: Path) -> None:
    base = Path(science_files(tmp_path)[1])
    write_json(base / "pid_splits.json", {"test": ["99"]})
    with pytest.raises(ValueError, match="has no problem '99' of the split 'test'"):
        eval_science_qa.read_problems(base, "test")
