"""Reads tab-separated and Excel tables; every error names the file and what is wrong in it."""

from __future__ import annotations

import bz2
import csv
import gzip
import lzma
import zlib
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""Suffix of a compressed table -> the function that opens it."""

MISSING = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA")
    + ("NULL", "NaN", "None", "n/a", "nan", "null")
)
"""Cells that pandas, with which LLaVA reads tables, treats as missing by default."""

OPTION_COLUMNS = ("A", "B", "C", "D")
"""Columns of the options in MMBench's tables."""

LONGEST_CELL = 2**30
"""Characters of a table's cell; MMBench's hold images as base64 text."""
END = "\x1e"
"""Follows a table's last line; inside a cell, it shows that the cell's quotation mark is not closed."""


def is_missing(cell: str) -> bool:
    """Whether a table's cell holds no value, as LLaVA reads it: pandas' spellings, and "nan" and "none" in any case."""
    return cell in MISSING or cell.strip().lower() in ("", "nan", "none")


def find_row_options(row: Mapping[str, Any]) -> dict[str, str]:
    """Finds the options of a row of MMBench's table by letter, up to the first missing one, as LLaVA asks them."""
    texts = [str(row.get(letter) or "") for letter in OPTION_COLUMNS]
    count = next((place for place, text in enumerate(texts) if is_missing(text)), len(texts))
    return dict(zip(OPTION_COLUMNS, texts[:count], strict=False))


def read_table(path: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Reads a tab-separated table with a header; all values are text, and an empty cell is "".

    Args:
        path: the table, UTF-8 with or without a byte order mark; compressed where its name ends in .gz, .bz2 or .xz.
        columns: those that it must have.

    Raises:
        ValueError: the file is not a table, or a column is missing.
    """
    found = csv.field_size_limit(LONGEST_CELL)
    try:
        with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(chain(file, [END]), delimiter="\t")
            lines = [line for line in reader if line[1:] or "".join(line).strip(" ")]  # not those of blanks alone
    except (csv.Error, UnicodeDecodeError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path} is not a tab-separated table: {error}") from None
    except OSError as error:
        if error.errno is not None:  # of the file; gzip and bz2 raise errors without a number for what it holds
            raise
        raise ValueError(f"{path} is not a tab-separated table: {error}") from None
    finally:
        csv.field_size_limit(found)
    if lines.pop() != [END]:
        raise ValueError(f"{path} is not a tab-separated table: a quotation mark is not closed")
    if not lines:
        raise ValueError(f"{path} is not a tab-separated table: it is empty")
    header, *rows = lines
    if missing := [name for name in columns if name not in header]:
        raise ValueError(f"{path} has no column {', '.join(missing)}")
    if wide := next((number for number, row in enumerate(rows, start=1) if len(row) > len(header)), None):
        cells = f"{len(rows[wide - 1])} cells and the header {len(header)}"
        raise ValueError(f"{path} is not a tab-separated table: row {wide} has {cells}")
    return [dict(zip_longest(header, row, fillvalue="")) for row in rows]


def read_sheet(path: Path) -> list[dict[str, str]]:
    """Reads the first sheet of an Excel file with a header; all values are text, and an empty cell is "".

    Raises:
        ImportError: openpyxl is not installed.
        ValueError: the file is not an Excel file, or empty.
    """
    try:
        import openpyxl  # an extra
    except ImportError:
        raise ImportError(f'{path} is an Excel file; reading it takes openpyxl: pip install ".[eval]"') from None
    try:
        sheet = openpyxl.load_workbook(path, read_only=True).worksheets[0]
        lines = [[_cell(value) for value in line] for line in sheet.iter_rows(values_only=True)]
        lines = [line for line in lines if any(line)]  # Excel also saves rows that hold nothing but a format
    except (BadZipFile, EOFError, zlib.error, KeyError, openpyxl.utils.exceptions.InvalidFileException) as error:
        raise ValueError(f"{path} is not an Excel file: {error}") from None
    if not lines:
        raise ValueError(f"{path} holds no rows")
    return [dict(zip(lines[0], line, strict=False)) for line in lines[1:]]


def _cell(value: Any) -> str:
    """Turns a cell of a sheet into text; Excel may store whole numbers as floats."""
    if value is None:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)
