"""Checks of the right answers that a sweep and the evaluation of a training compare with."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from llava.eval.run.inputs.checks import check_answered
from llava.eval.run.inputs.questions import Question

FILE = Path("q.jsonl")


def ask(name: int, text: str, answer: str | None) -> Question:
    return Question(name, text, text, None, answer=answer)


def test_letters_that_name_no_listed_option_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    listed = "Which?\nA. cat\nB. dog"
    questions = [ask(1, listed, "(B)"), ask(2, "A: cat, B: dog?", "A"), ask(3, listed, "c"), ask(4, "Which?", "cat")]
    with caplog.at_level(logging.WARNING):
        check_answered(FILE, questions, "add it")
    (record,) = caplog.records
    assert "q.jsonl: the right answer to 2 of 4 questions is a letter" in record.getMessage()
    assert "for example 2:" in record.getMessage()
    caplog.clear()
    check_answered(FILE, [questions[0], questions[3]], "add it")
    assert not caplog.records


def test_a_question_without_a_right_answer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"q\.jsonl: question 2 has no right answer; add it"):
        check_answered(FILE, [ask(1, "Which?", "cat"), ask(2, "Which?", None)], "add it")
