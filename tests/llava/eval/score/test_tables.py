"""Tables of questions and answers: text as it is, compressed or not, and damaged."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest

from llava.eval.score.tables import MISSING, is_missing, read_sheet, read_table


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
    whole = path.read_bytes()
    damaged = [bytes([*whole[:place], whole[place] ^ 255, *whole[place + 1 :]]) for place in range(len(whole))]
    for content in (b"text", whole[:-9], *damaged):
        path.write_bytes(content)
        try:
            assert read_table(path) == [{"a": "1", "b": "x"}]  # gzip's header has bytes that do not matter
        except ValueError as error:
            assert str(error).startswith(f"{path} ")
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / f"none.tsv{ending}")


def test_a_damaged_excel_file_is_named(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    path = tmp_path / "table.xlsx"
    book = openpyxl.Workbook()
    book.active.append(["index", "prediction"])
    book.active.append(["1", "A"])
    book.save(path)
    whole = path.read_bytes()
    start = whole.index(b"xl/worksheets/sheet1.xml") + len("xl/worksheets/sheet1.xml")
    damaged = [bytes([*whole[:at], whole[at] ^ 255, *whole[at + 1 :]]) for at in range(start, start + 100, 5)]
    for content in (b"text", whole[: len(whole) // 2], *damaged):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"table\.xlsx is not an Excel file"):
            read_sheet(path)


def test_blank_lines_of_a_table_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "table.tsv").write_text("a\tb\n\n1\tx\n  \n")
    assert read_table(tmp_path / "table.tsv") == [{"a": "1", "b": "x"}]
