"""RealWorldQA on hand-made answers, scored by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava.eval import eval_realworldqa
from tests.llava.eval.scoring import labelled


def test_realworldqa_by_hand(tmp_path: Path) -> None:
    """Choice: "A." right, the text of B wrong. Open: "Two." is 2 and "the north" is north, "left side" is not left.
    3 of 5; 1 of 2 and 2 of 3."""
    choice = "Where?\n\nA. Left\nB. Right\nPlease answer directly with only the letter of the correct option."
    rows = labelled(
        tmp_path,
        eval_realworldqa.main,
        [
            ({"text": choice, "answer": "A"}, "A."),
            ({"text": choice, "answer": "A"}, "right"),
            ({"text": "How many?", "answer": "2"}, "Two."),
            ({"text": "Which way?", "answer": "North"}, "the north"),
            ({"text": "Which side?", "answer": "left"}, "left side"),
        ],
    )
    assert rows == {
        "all": {"accuracy": 60.0, "questions": 5},
        "multiple choice": {"accuracy": 50.0, "questions": 2},
        "open": {"accuracy": pytest.approx(200 / 3), "questions": 3},
    }


@pytest.mark.parametrize(
    ("label", "said", "right"),
    [
        ("A", "", False),
        ("A", "the", False),
        ("A", "A", True),
        ("A", "a.", True),
        ("(A)", "A", True),
        ("B", "The answer is B.", True),
        ("A", "B", False),
        ("the", "", False),
        ("?", "", False),
        ("An apple", "apple", True),
    ],
)
def test_a_letter_is_no_article_and_an_empty_answer_never_right(label: str, said: str, right: bool) -> None:
    """The options of this question are not recognised, as they are on one line."""
    question = {"text": "Which one? A: the left one, B: the right one", "answer": label}
    assert eval_realworldqa.kind(question) == "open"
    assert eval_realworldqa.judge_answer(question, said) is right
