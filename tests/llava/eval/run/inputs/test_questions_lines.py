"""LLaVA's JSON lines of questions, with right answers in the file or beside it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from llava.eval import model_vqa_loader
from llava.eval.run.inputs.questions import Question, read_lines

QUESTION = {"question_id": 7, "image": "a.png", "text": "What?"}
FOLDER = Path("pictures")


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("extra", "answer", "category"),
    [
        ({}, None, "all"),
        ({"answer": "red"}, "red", "all"),
        ({"label": "yes", "category": "existence"}, "yes", "existence"),
        ({"answer": 3}, "3", "all"),
        ({"answer": 3.0}, "3", "all"),  # of a table with gaps
        ({"answer": 2.5}, "2.5", "all"),
        ({"answer": ""}, None, "all"),
        ({"answer": None, "label": "yes"}, "yes", "all"),
    ],
)
def test_a_question_may_bring_its_answer_and_category(
    tmp_path: Path, extra: dict[str, Any], answer: str | None, category: str
) -> None:
    file = write(tmp_path / "q.jsonl", QUESTION | extra)
    (question,) = read_lines(file, FOLDER)
    assert question == Question(
        7, "What?", "What?", FOLDER / "a.png", "a.png", index=0, answer=answer, category=category
    )


@pytest.mark.parametrize("extra", [{"answer": ["yes", "yeah"]}, {"answer": True}, {"label": {}}, {"answer": "red"}])
def test_right_answers_that_no_one_needs_may_be_of_any_type(tmp_path: Path, extra: dict[str, Any]) -> None:
    """VQA's files list ten annotators' answers; the runner compares with none."""
    file = write(tmp_path / "q.jsonl", QUESTION | extra)
    (question,) = model_vqa_loader.read(argparse.Namespace(question_file=file, image_folder=FOLDER))
    assert question == Question(7, "What?", "What?", FOLDER / "a.png", "a.png", index=0)


def test_answers_of_a_file_are_matched_by_question_and_go_before_the_questions_own(tmp_path: Path) -> None:
    questions = write(tmp_path / "q.jsonl", QUESTION | {"answer": "no"}, QUESTION | {"question_id": "b"})
    answers = write(tmp_path / "a.jsonl", {"question_id": "b", "answer": "B"}, {"question_id": 7.0, "text": "A"})
    assert [question.answer for question in read_lines(questions, FOLDER, answers)] == ["A", "B"]


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"text": "red"}, "red"),
        ({"answer": "red"}, "red"),
        ({"label": "red"}, "red"),
        ({"text": "What?", "answer": "red"}, "red"),
        ({"text": "What?", "label": "red"}, "red"),
        ({"text": "What?", "image": "a.png", "label": "red"}, "red"),  # a question file with its answers
        ({"text": "red", "image": "a.png", "prompt": "What?"}, "red"),
        ({"text": "red", "answer": None}, "red"),
        ({"answer": 3}, "3"),
    ],
)
def test_a_right_answer_is_an_answer_or_a_label_before_it_is_a_text(
    tmp_path: Path, row: dict[str, Any], answer: str
) -> None:
    questions = write(tmp_path / "q.jsonl", QUESTION)
    answers = write(tmp_path / "a.jsonl", {"question_id": 7} | row)
    assert [question.answer for question in read_lines(questions, FOLDER, answers)] == [answer]


def test_a_right_answer_may_be_there_twice_if_both_agree(tmp_path: Path) -> None:
    questions = write(tmp_path / "q.jsonl", QUESTION, QUESTION | {"text": "Where?"})
    answers = write(tmp_path / "a.jsonl", {"question_id": 7, "text": "yes"}, {"question_id": 7, "answer": "yes"})
    assert [question.answer for question in read_lines(questions, FOLDER, answers)] == ["yes", "yes"]


def test_only_a_line_feed_ends_a_line_and_blank_lines_do_not_count(tmp_path: Path) -> None:
    text = "before\u2028after\x85end"
    file = tmp_path / "q.jsonl"
    line = json.dumps(QUESTION | {"text": text}, ensure_ascii=False)
    file.write_bytes(f"\n{line}\r\n \n{line}".encode())
    assert [question.text for question in read_lines(file, FOLDER)] == [text, text]


@pytest.mark.parametrize(
    ("questions", "answers", "words"),
    [
        ([QUESTION, '{"question_id":'], None, r"q\.jsonl:2 is not JSON"),
        ([[1]], None, r"q\.jsonl:1: a list; it must be an object"),
        ([{"question_id": 1, "text": "?"}], None, r"q\.jsonl:1: the question has no image"),
        ([{"image": "a.png"}], None, "has no question_id, text"),
        ([""], None, "holds no questions"),
        ([QUESTION, QUESTION | {"image": None}], None, r"q\.jsonl:2: image is null; it must be text"),
        ([QUESTION | {"image": ["a.png"]}], None, r'q\.jsonl:1: image is \["a\.png"\]; it must be text'),
        ([QUESTION | {"image": ""}], None, r"q\.jsonl:1: image is empty; it must name a file"),
        ([QUESTION | {"text": 5}], None, r"q\.jsonl:1: text is 5; it must be text"),
        ([QUESTION | {"text": "\ud800"}], None, r"q\.jsonl:1: text contains a lone surrogate, '.ud800'"),
        (
            [QUESTION | {"answer": ["yes", "yeah"]}],
            None,
            r'q\.jsonl:1: answer is \["yes", "yeah"\]; it must be text or a',
        ),
        ([QUESTION | {"answer": True}], None, r"q\.jsonl:1: answer is true; it must be text or a number"),
        ([QUESTION | {"label": {}}], None, r"q\.jsonl:1: label is \{\}; it must be text or a number"),
        ([QUESTION | {"question_id": [7]}], None, r"q\.jsonl:1: question_id is \[7\]; it must be text or a number"),
        ([QUESTION | {"question_id": None}], None, r"q\.jsonl:1: question_id is null"),
        ([QUESTION], [{"question_id": {}, "text": "A"}], r"a\.jsonl:1: question_id is \{\}; it must be text or a"),
        ([QUESTION], [{"question_id": 8, "text": "A"}], r"a\.jsonl has no answer to question 7"),
        ([QUESTION], [{"question_id": 7}], r"a\.jsonl:1: an answer needs question_id and answer, label or text"),
        (
            [QUESTION],
            [{"question_id": 7, "text": None}],
            r"a\.jsonl:1: an answer needs question_id and answer, label or",
        ),
        ([QUESTION], [{"question_id": 7, "text": ["a"]}], r'a\.jsonl:1: text is \["a"\]; it must be text or a number'),
        ([QUESTION], [QUESTION], r"a\.jsonl:1 is a question, not an answer: it has no answer or label"),
        (
            [QUESTION],
            [{"question_id": 7, "text": "yes"}, {"question_id": 7, "text": "no"}],
            r"a\.jsonl:2: 7 appears twice, with the answers 'yes' and 'no'",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, questions: list[Any], answers: list[Any] | None, words: str) -> None:
    question_file = write(tmp_path / "q.jsonl", *questions)
    answers_file = None if answers is None else write(tmp_path / "a.jsonl", *answers)
    with pytest.raises(ValueError, match=words):
        read_lines(question_file, FOLDER, answers_file)
