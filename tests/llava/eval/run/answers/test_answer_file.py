"""The file of answers takes up after a kill, never mixes runs, and ends in the questions' order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.eval.run.answers.answer_file import AnswerFile, difference
from llava.eval.run.inputs.questions import Question

SETTINGS = {"tower": "qlip", "alpha": 0.8, "decoding": {"temperature": 0.0, "top_p": None}}
QUESTIONS = [Question(name, f"What is {name}?", "", None) for name in ("a", "b", "b", "c")]


def row(index: int, **changes: Any) -> dict[str, Any]:
    question = QUESTIONS[index]
    metadata = {"index": index, "image": None, "visual_tokens": index, **SETTINGS}
    return {"question_id": question.question_id, "prompt": question.prompt, "text": "x", "metadata": metadata} | changes


def texts(path: Path) -> list[tuple[int, str]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(entry["metadata"]["index"], entry.get("text", entry.get("error"))) for entry in rows]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "answers.jsonl"


def started(path: Path, part: int | None = None, resume: bool = True) -> AnswerFile:
    answers = AnswerFile(path, part)
    answers.check_place()
    answers.check_rows(QUESTIONS, resume)
    if resume:
        answers.check_same_settings(SETTINGS)
    answers.start(resume)
    return answers


def lost(index: int, why: str = "lost") -> dict[str, Any]:
    return {"question_id": QUESTIONS[index].question_id, "error": why, "metadata": {"index": index}}


def test_answers_stand_in_the_file_at_once_and_in_order_at_the_end(path: Path) -> None:
    answers = started(path)
    answers.append([row(2), row(0)])
    assert texts(path) == [(2, "x"), (0, "x")]
    answers.append([row(1), lost(3)])
    assert answers.finish() == (3, 1)
    assert texts(path) == [(0, "x"), (1, "x"), (2, "x")]
    assert texts(path.parent / "answers.errors.jsonl") == [(3, "lost")]


def test_what_several_processes_wrote_is_merged_after_any_kill(path: Path) -> None:
    started(path).append([row(3)])
    AnswerFile(path, 0).append([row(1), lost(0)])
    AnswerFile(path, 1).append([row(2), row(1, text="late")])
    later = started(path, part=0)  # another number of processes
    assert later.done() == {1, 2, 3}
    later.append([row(0)])
    assert later.finish() == (4, 0)
    assert texts(path) == [(0, "x"), (1, "x"), (2, "x"), (3, "x")]
    assert [file.name for file in path.parent.iterdir()] == ["answers.jsonl"]


@pytest.mark.parametrize("name", ["run[7b].jsonl", "a*.jsonl", "what?.jsonl", "[!a].jsonl"])
def test_parts_are_found_whatever_characters_the_name_has(tmp_path: Path, name: str) -> None:
    answers = started(tmp_path / name)
    for part in (0, 1):
        AnswerFile(tmp_path / name, part).append([row(part), lost(part + 2)])
    assert answers.finish() == (2, 2)
    assert texts(tmp_path / name) == [(0, "x"), (1, "x")]
    assert len(list(tmp_path.iterdir())) == 2


def test_questions_that_have_neither_answer_nor_error_are_known(path: Path) -> None:
    answers = started(path)
    answers.append([row(0), lost(2)])
    assert answers.lost(range(4)) == {1, 3}
    assert answers.lost([0, 2]) == set()


def test_errors_of_a_former_run_are_forgotten_so_that_their_questions_are_asked_again(path: Path) -> None:
    started(path).append([row(0), lost(1)])
    answers = started(path)
    assert answers.done() == {0}
    answers.append([row(1)])
    assert answers.finish() == (2, 0)
    assert not answers.errors.exists()


def test_starting_over_deletes_everything(path: Path) -> None:
    started(path).append([row(0), lost(1)])
    AnswerFile(path, 1).append([row(2)])
    assert started(path, resume=False).done() == set()


def test_starting_over_may_be_killed_and_leaves_no_part_without_its_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each file that goes, what is left is a run that `check` refuses, or nothing."""
    started(path).append([row(0), lost(1)])
    AnswerFile(path, 0).append([row(2)])
    left = []
    unlink = Path.unlink

    def watched(file: Path, missing_ok: bool = False) -> None:
        unlink(file, missing_ok)
        left.append({other.name for other in path.parent.iterdir()})

    monkeypatch.setattr(Path, "unlink", watched)
    AnswerFile(path).start(resume=False)
    assert {"answers.jsonl"} in left
    assert all("answers.jsonl" in names or not names for names in left)


def test_a_run_without_questions_leaves_an_empty_file(path: Path) -> None:
    assert started(path).finish() == (0, 0)
    assert path.read_text() == ""


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (row(0) | {"metadata": row(0)["metadata"] | {"alpha": 0.4}}, "alpha is 0.4 there and 0.8 now"),
        (
            row(0) | {"metadata": row(0)["metadata"] | {"decoding": {"temperature": 0.2, "top_p": None}}},
            "decoding.temperature is 0.2 there and 0.0 now",
        ),
        (row(0) | {"metadata": {"index": 0}}, "tower is null there"),
        (row(0, prompt="Why?"), r"answers question 'a', but its text \(prompt\) is not that of the question file"),
        (
            row(0) | {"metadata": {**row(0)["metadata"], "text": "sha256:0123456789abcdef"}},
            "answers question 'a', but with another instruction or other options than these flags",
        ),
        (row(0, question_id="z"), "answers question 'z', but number 0 of the question file is 'a';"),
        (
            row(0) | {"metadata": {**row(0)["metadata"], "image": "b.png"}},
            "answers question 'a' about the image 'b.png', but the question file has None",
        ),
        (row(0) | {"metadata": {**row(0)["metadata"], "index": 9}}, "number 9 of the question file is nothing"),
    ],
)
def test_answers_of_another_run_are_never_mixed_in(path: Path, found: Any, words: str) -> None:
    path.parent.mkdir()
    content = json.dumps(row(1)) + "\n" + json.dumps(found) + "\n"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"answers.jsonl:\d .*{words}.*--no-resume"):
        started(path)
    assert sorted(path.read_text().splitlines()) == sorted(content.splitlines())


def test_differences_are_named_wherever_they_are() -> None:
    old = {"a": 1, "b": {"c": 2, "d": 3}, "e": 4}
    assert difference(old, {"a": 1, "b": {"c": 2, "d": 5}, "f": None}) == [
        "b.d is 3 there and 5 now",
        "e is 4 there and null now",
    ]
    assert difference(old, old) == []
