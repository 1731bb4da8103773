"""Files are read whole, or refused with the place of what is wrong; a score is shown and written alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.eval.score.rows import find_texts, read_answers, read_json, read_json_lines
from llava.eval.score.score import Score, accuracy_by, run_scorer, score_parser
from tests.llava.eval.files import write_rows


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [{"question_id": 1, "text": "a"}, {"question_id": "1", "text": "b"}],
            r"a\.jsonl:2: '1' appears twice",
        ),
        ([{"question_id": 1}], r"a\.jsonl:1: the row has no text"),
        ([{"text": "a"}], r"a\.jsonl:1: the row has no question_id"),
        ([], r"a\.jsonl holds no rows"),
        ([["text"]], r"a\.jsonl:1: a list; it must be an object"),
    ],
)
def test_a_wrong_answers_file_is_refused(tmp_path: Path, rows: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_answers(write_rows(tmp_path / "a.jsonl", rows))


def test_missing_answers_are_counted_and_one_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"question_id": 2, "text": "b"}, {"question_id": "x", "text": "no"}])
    answers = read_answers(path)
    assert find_texts([("x",), ("2",)], answers, path) == ["no", "b"]
    with pytest.raises(ValueError, match=r"a\.jsonl lacks the answers to 2 of 3 questions, for example '3'"):
        find_texts([("2",), ("3",), ("4",)], answers, path)


def test_json_must_be_json_of_the_right_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a":\n1,}')
    with pytest.raises(ValueError, match=r"a\.json:2 is not JSON"):
        read_json(path, dict)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"a\.json holds a list; it must be a dict"):
        read_json(path, dict)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, encoding: str) -> None:
    """As Windows' programs write it."""
    path = tmp_path / "a.json"
    path.write_text('{"question_id": 1, "text": "é"}', encoding=encoding)
    assert read_json_lines(path) == [(1, read_json(path, dict))] == [(1, {"question_id": 1, "text": "é"})]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_in_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"text": "é"}', encoding=encoding)
    for read in (read_json_lines, lambda path: read_json(path, dict)):
        with pytest.raises(ValueError, match=r"a\.json is not UTF-8 text: .* at byte"):
            read(path)


def test_the_command_prints_the_table_and_writes_the_same_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score = Score("Test", {"all": {"accuracy": 200 / 3, "questions": 3}, "a longer name": {"accuracy": 100.0}})
    parser = score_parser("eval_test", "Test.", result_file=False)
    assert run_scorer(parser, lambda args: score, ["--json", str(tmp_path / "new" / "score.json")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Test           accuracy  questions",
        "all               66.67          3",
        "a longer name    100.00           ",
    ]
    assert json.loads((tmp_path / "new" / "score.json").read_text()) == score.to_dict()


def test_errors_are_reported_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(args: object) -> Score:
        raise ValueError("no\nscore")

    assert run_scorer(score_parser("eval_test", "Test.", result_file=False), fail, []) == 2
    assert capsys.readouterr().err == "eval_test: error: no score\n"


def test_groups_keep_their_order() -> None:
    rows = accuracy_by([True, False, True, True], ["b", "a", "b", "a"])
    assert rows == {"b": {"accuracy": 100.0, "questions": 2}, "a": {"accuracy": 50.0, "questions": 2}}
    assert list(rows) == ["b", "a"]
