"""Q-Bench: LLaVA's prompts, the score on the development set, and the submission."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.eval import eval_qbench, model_vqa_qbench
from llava.eval.score.qbench import find_right, make_prompt, read_entries
from llava.utils import demo_picture_path
from tests.llava.eval.files import read_rows, write_answers, write_json

ENTRIES = [
    {
        "img_path": "1.png",
        "question": "How is the lighting?",
        "question_type": 2,
        "question_concern": 1,
        "candidates": ["High", "Low", "Medium"],
        "correct_ans": "Low",
    },
    {
        "img_path": "2.png",
        "question": "Is it blurred?",
        "question_type": 0,
        "question_concern": 0,
        "candidates": ["Yes", "No"],
        "correct_ans": "Yes",
    },
]
TEST = [{name: value for name, value in entry.items() if name != "correct_ans"} for entry in ENTRIES]


def evaluate(folder: Path, entries: list[dict[str, Any]], *texts: str) -> int:
    asked = write_json(folder / "asked.json", entries)
    prompts = {number: make_prompt(entry, "en") for number, entry in enumerate(entries)}
    answers = write_answers(folder / "answers.jsonl", dict(enumerate(texts)), prompts)
    flags = ["--question-file", str(asked), "--result-file", str(answers), "--json", str(folder / "score.json")]
    return eval_qbench.main([*flags, "--upload-file", str(folder / "upload.json")])


def test_the_prompt_is_llavas() -> None:
    assert make_prompt(ENTRIES[0], "en") == (
        "How is the lighting?\nChoose between one of the options as follows:\nA. High\nB. Low\nC. Medium\n"
    )
    assert "在下列选项中选择一个:\nA. High" in make_prompt(ENTRIES[0], "zh")


def test_the_score_is_by_type_and_concern(tmp_path: Path) -> None:
    """One of two is right; the other answer chooses no option."""
    assert evaluate(tmp_path, ENTRIES, "B. Low", "I see a cat.") == 0
    rows = json.loads((tmp_path / "score.json").read_text())["rows"]
    assert rows["all"] == {"accuracy": 50.0, "questions": 2, "unparsed": 1}
    assert {name: rows[name]["accuracy"] for name in list(rows)[1:]} == {
        "type 0": 0.0, "type 2": 100.0, "concern 0": 0.0, "concern 1": 100.0,
    }  # fmt: skip
    assert json.loads((tmp_path / "upload.json").read_text()) == [
        {**entry, "response": text} for entry, text in zip(ENTRIES, ("B. Low", "I see a cat."), strict=True)
    ]


def test_the_test_set_has_a_submission_and_no_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path, TEST, "B", "A") == 0
    assert [row["response"] for row in json.loads((tmp_path / "upload.json").read_text())] == ["B", "A"]
    assert "asked.json has no right answers: submit the file" in capsys.readouterr().out
    assert not (tmp_path / "score.json").exists()
    asked = str(tmp_path / "asked.json")
    assert eval_qbench.main(["--question-file", asked, "--check", asked]) == 0
    assert capsys.readouterr().out == f"{asked}: 2 questions, without right answers\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct_ans": "Bright"}, "entry 0: correct_ans is 'Bright'; it must be one of High, Low, Medium"),
        ({"candidates": ["Low", "Low"]}, "entry 0: correct_ans is 'Low', the text of A, B"),
        ({"candidates": ["Low"]}, "candidates is ['Low']; it must be a list of 2 to 26 options"),
        ({"candidates": ["Low", None]}, "an option of candidates is None; it must be text"),
        ({"img_path": ""}, "img_path is ''; it must name a file"),
    ],
)
def test_entries_that_cannot_be_scored_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    assert evaluate(tmp_path, [{**ENTRIES[0], **change}, ENTRIES[1]], "A", "A") == 2
    assert message in capsys.readouterr().err


def test_a_right_answer_that_only_some_entries_have_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path, [ENTRIES[0], TEST[1]], "A", "A") == 2
    assert "entry 1: the row has no correct_ans" in capsys.readouterr().err


@pytest.mark.parametrize(("right", "letter"), [("Low", "B"), (" Low ", "B"), ("B", "B"), ("(c)", "C"), (3, "D")])
def test_the_right_option_is_named_by_its_text_or_its_letter(right: Any, letter: str) -> None:
    entry = {"candidates": ["High", "Low", "Medium", 3], "correct_ans": right}
    assert find_right("here", entry) == letter


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"q.json holds a dict; it must be a list"):
        read_entries(write_json(tmp_path / "q.json", {}))
    with pytest.raises(ValueError, match="q.json holds no questions"):
        read_entries(write_json(tmp_path / "q.json", []))
    with pytest.raises(ValueError, match=r"the file\[0\]: the row has no img_path, candidates"):
        read_entries(write_json(tmp_path / "q.json", [{"question": "?"}]))


@pytest.mark.parametrize("flag", ["--question-file", "--questions-file"])
def test_the_runner_asks_under_llavas_flags(tmp_path: Path, flag: str) -> None:
    """The embedded model answers; LLaVA calls the file of questions otherwise than its other commands do."""
    entry = {"img_path": "1.png", "question": "What colour is the ring?", "candidates": ["red", "purple"]}
    (tmp_path / "1.png").write_bytes(demo_picture_path().read_bytes())
    asked, out = write_json(tmp_path / "q.json", [entry]), tmp_path / "a.jsonl"
    flags = [flag, str(asked), "--image-folder", str(tmp_path), "--answers-file", str(out), "--device", "cpu"]
    assert model_vqa_qbench.main([*flags, "--conv-mode", "llava_v1", "--lang", "zh"]) == 0
    (row,) = read_rows(out)
    assert row["question_id"] == 0
    assert row["prompt"] == "What colour is the ring?\n在下列选项中选择一个:\nA. red\nB. purple\n"
