"""Reviews: the judge's request, the scores in its answer, and their averages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llava.eval.review.reviews import (
    UNREAD,
    average_scores,
    build_request,
    read_captions,
    read_reviews,
    read_rules,
    read_scores,
)
from tests.llava.eval.files import write_json, write_rows


def test_the_request_has_llavas_headings_in_llavas_order() -> None:
    rule = {"role": "Assistant", "prompt": "Score them."}
    assert build_request("A ring.\nIt is blue.", "Which colour?", ["Blue.", "Red."], rule) == (
        "[Context]\nA ring.\nIt is blue.\n\n"
        "[Question]\nWhich colour?\n\n"
        "[Assistant 1]\nBlue.\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nRed.\n\n[End of Assistant 2]\n\n"
        "[System]\nScore them.\n\n"
    )


@pytest.mark.parametrize(
    ("review", "scores"),
    [
        ("8 7\nThe first one is better.", (8.0, 7.0)),
        ("8, 7", (8.0, 7.0)),
        ("8.5,9", (8.5, 9.0)),
        ("\n 10  1 \nWhy", (10.0, 1.0)),
        ("8", UNREAD),
        ("8 7 6", UNREAD),
        ("Assistant 1: 8", UNREAD),
        ("The first: 8 7", UNREAD),
        ("8 nan", UNREAD),
        ("8 11", UNREAD),
        ("-1 -1", UNREAD),
        ("", UNREAD),
    ],
)
def test_scores_are_the_two_numbers_of_the_first_line(review: str, scores: tuple[float, float]) -> None:
    assert read_scores(review) == scores


def test_averages_are_relative_to_the_reference() -> None:
    """By hand: conv (8 + 10) / 2 = 9 and (6 + 7.5) / 2 = 6.75, of which 6.75 / 9 is three quarters."""
    reviews = [
        {"question_id": 0, "category": "llava_bench_conv", "tuple": (8, 6)},
        {"question_id": 1, "category": "llava_bench_detail", "tuple": (5, 6)},
        {"question_id": 2, "category": "llava_bench_conv", "tuple": (10, 7.5)},
        {"question_id": 3, "category": "llava_bench_conv", "tuple": UNREAD},
        {"question_id": "4", "category": "llava_bench_conv", "tuple": (1, 1)},
    ]
    score = average_scores("run", reviews, ["4"])
    assert list(score.rows) == ["all", "llava_bench_conv", "llava_bench_detail"]
    assert score.rows["llava_bench_conv"] == {
        "relative": 75.0, "reference": 90.0, "model": 67.5, "questions": 2, "unread": 1,
    }  # fmt: skip
    assert score.rows["llava_bench_detail"]["relative"] == pytest.approx(120)
    assert score.rows["all"]["relative"] == pytest.approx(100 * 19.5 / 23)


def test_without_scores_there_is_no_average() -> None:
    score = average_scores("run", [{"question_id": 0, "tuple": UNREAD}])
    assert score.rows == {"all": {"questions": 0, "unread": 1}}
    with pytest.raises(ValueError, match="run: all: the reference's scores are 0"):
        average_scores("run", [{"question_id": 0, "tuple": (0, 5)}])
    with pytest.raises(ValueError, match="run: all: no review is left"):
        average_scores("run", [{"question_id": 0, "tuple": (1, 5)}], ["0"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question_id": 1}, "reviews.jsonl:2: tuple is None; it must hold the scores of two answers"),
        ({"question_id": 1, "tuple": [1]}, r"tuple is \[1\]"),
        ({"question_id": 1, "tuple": [True, 2]}, r"tuple is \[True, 2\]"),
        ({"question_id": 1, "tuple": [1, 10**400]}, r"tuple is \[1, 1000"),
        ({"question_id": 1, "tuple": [1, float("inf")]}, r"tuple is \[1, None\]"),
        ({"question_id": 1, "tuple": [1, 2], "category": None}, "reviews.jsonl:2: category is None; it must be text"),
        ({"question_id": 0, "tuple": [1, 2]}, "reviews.jsonl:2: question_id '0' appears twice"),
        ({"tuple": [1, 2]}, "reviews.jsonl:2: the row has no question_id"),
    ],
)
def test_a_row_that_is_no_review_is_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    path = write_rows(tmp_path / "reviews.jsonl", [{"question_id": 0, "score": [8, 7]}, row])
    with pytest.raises(ValueError, match=message):
        read_reviews(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} holds no reviews"):
        read_reviews(path)


def test_captions_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = tmp_path / "context.jsonl"
    rows = [{"image": "a", "caption": ["One.", "Two."]}, {"image": "b", "caption": "One."}]
    assert read_captions(write_rows(path, rows)) == {"a": "One.\nTwo.", "b": "One."}
    with pytest.raises(ValueError, match="context.jsonl:3: image 'a' appears twice"):
        read_captions(write_rows(path, [*rows, rows[0]]))
    with pytest.raises(ValueError, match=r"context.jsonl:1: caption is 3; it must be text"):
        read_captions(write_rows(path, [{"image": "a", "caption": 3}]))


def test_rules_are_read_for_the_categories_that_are_asked(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rule.json", {"a": {"role": "R", "prompt": "P"}, "b": {"role": "R", "prompt": 1}})
    assert read_rules(path, ["a"])["a"] == {"role": "R", "prompt": "P"}
    with pytest.raises(ValueError, match=r"rule.json: b: prompt is 1; it must be text"):
        read_rules(path, ["b"])
    with pytest.raises(ValueError, match="rule.json has no 'c'; it must have all categories of the questions"):
        read_rules(path, ["c"])
