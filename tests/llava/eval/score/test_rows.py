"""Files are read whole, or refused with the place of what is wrong; a score is shown and written alike."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest

from llava.eval.score.rows import MISSING, find_texts, is_missing, read_answers, read_json, read_rows, read_table
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
    assert read_rows(path) == [(1, read_json(path, dict))] == [(1, {"question_id": 1, "text": "é"})]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_in_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"text": "é"}', encoding=encoding)
    for read in (read_rows, lambda path: read_json(path, dict)):
        with pytest.raises(ValueError, match=r"a\.json is not UTF-8 text: .* at byte"):
            read(path)


def test_a_table_keeps_its_text_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('index\tA\tB\n007\tNone\t\n2\t"two\nlines"\t1.0\n')
    assert read_table(path) == [{"index": "007", "A": "None", "B": ""}, {"index": "2", "A": "two\nlines", "B": "1.0"}]
    path.write_text("")
    with pytest.raises(ValueError, match=r"a\.tsv is not a tab-separated table"):
        read_table(path)


@pytest.mark.parametrize("cell", [*sorted(MISSING - {""}), "0", "na", "Nan's", "nothing", "-", "NAN or not", "n/a?"])
def test_cells_are_missing_that_pandas_takes_for_missing(cell: str) -> None:
    pandas = pytest.importorskip("pandas", "2.0")  # gradio's
    assert is_missing(cell) == pandas.read_csv(StringIO(f"x\n{cell}\n"), sep="\t").x.isna().all()


@pytest.mark.parametrize("cell", ["", "none", "NONE", " nan "])
def test_cells_are_missing_that_llava_takes_for_missing(cell: str) -> None:
    assert is_missing(cell)


def test_a_table_may_have_a_byte_order_mark_huge_cells_short_rows_and_quotes_inside(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    image = "A" * 200_000  # csv's own limit is 131 072 characters
    path.write_bytes(f'\ufeffindex\tA\timage\r\n1\tthe "red" one\t{image}\r\n\r\n2\t"say ""red"""\r\n'.encode())
    assert read_table(path, ("index", "A")) == [
        {"index": "1", "A": 'the "red" one', "image": image},
        {"index": "2", "A": 'say "red"', "image": ""},
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not a tab-separated table: it is empty"),
        ("index\tA\n1\t2\t3\n", "is not a tab-separated table: row 1 has 3 cells and the header 2"),
        ('index\tA\n1\t"two\n2\tthree\n', "is not a tab-separated table: a quotation mark is not closed"),
        ("index\tB\n1\t2\n", "has no column A"),
    ],
)
def test_a_file_that_is_no_table_is_named(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"a\.tsv {words}"):
        read_table(path, ("index", "A"))


@pytest.mark.parametrize(
    ("ending", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_a_compressed_table_is_read_by_its_ending(
    tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"table.tsv{ending}"
    path.write_bytes(compress(b"a\tb\n1\tx\n"))
    assert read_table(path) == [{"a": "1", "b": "x"}]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises((ValueError, OSError)):
        read_table(path)


def test_blank_lines_of_a_table_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "table.tsv").write_text("a\tb\n\n1\tx\n  \n")
    assert read_table(tmp_path / "table.tsv") == [{"a": "1", "b": "x"}]


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
