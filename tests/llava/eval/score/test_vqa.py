"""The VQA challenge's normalisation and soft accuracy, worked out by hand from its published rules."""

from __future__ import annotations

import pytest

from llava.eval.m4c_evaluator import EvalAIAnswerProcessor, TextVQAAccuracyEvaluator
from llava.eval.score.vqa import normalise_answer, soft_accuracy


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Red", "red"),
        ("The red one", "red 1"),  # articles, number words
        ("a man and an apple", "man and apple"),
        ("None", "0"),
        ("eleven", "eleven"),  # numbers go to ten
        ("1,000", "1000"),
        ("yes, it is?", "yes it is"),
        ("3.5", "3.5"),
        ("10.", "10"),
        ("U.S.A.", "usa"),
        ("dont", "don't"),
        ("couldn'tve", "couldn't've"),
        ("don't", "don't"),
        ("Levi's", "levi 's"),
        ("x-ray", "x ray"),  # within a word a sign becomes a blank
        ("x -ray", "x ray"),
        ("t-shirt - blue", "tshirt blue"),  # but a blank beside one hyphen removes all of them
        ("(b)", "b"),
        ("@home", "home"),
        ("two\nlines\there", "2 lines here"),
        ("", ""),
        ("the", ""),
    ],
)
def test_an_answer_is_normalised(text: str, normal: str) -> None:
    assert normalise_answer(text) == normal
    assert EvalAIAnswerProcessor()(text) == normal


@pytest.mark.parametrize(
    ("matches", "accuracy"),
    [
        (0, 0.0),
        # One annotator said it: of the ten sets of nine others, nine hold him and give 1/3, his own gives 0.
        (1, 0.3),
        # Two: eight sets hold both, 2/3; two hold one, 1/3: (8 * 2 + 2 * 1) / 30.
        (2, 0.6),
        # Three: seven sets hold all, 1; three hold two, 2/3: (7 * 3 + 3 * 2) / 30.
        (3, 0.9),
        # Four: each set of nine holds at least three.
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_soft_accuracy_leaves_each_annotator_out_in_turn(matches: int, accuracy: float) -> None:
    answers = ["The  Two!"] * matches + [f"other {index}" for index in range(10 - matches)]
    assert soft_accuracy("2", answers) == pytest.approx(accuracy)


def test_the_mean_over_questions_has_llavas_name() -> None:
    pairs = [("red", ["red"] * 10), ("blue", ["red"] * 8 + ["Blue.", "x"])]
    rows = [{"pred_answer": said, "gt_answers": answers} for said, answers in pairs]
    assert TextVQAAccuracyEvaluator().eval_pred_list(rows) == pytest.approx((1 + 0.3) / 2)


def test_there_must_be_ten_annotators_and_an_answer() -> None:
    with pytest.raises(ValueError, match="there are 3 annotators' answers; the soft accuracy needs 10"):
        soft_accuracy("red", ["red"] * 3)
    with pytest.raises(ValueError, match="no answer to score"):
        TextVQAAccuracyEvaluator().eval_pred_list([])
