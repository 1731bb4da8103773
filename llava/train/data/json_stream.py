"""Reads the items of large JSON files one by one: a list, or a value per line. Memory does not grow with the file."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

CHUNK = 2**20
"""Bytes that are read at a time."""

LONGEST_ITEM = 2**26
"""Most bytes of an item; a longer one is most likely an error, such as a quotation mark that is missing."""

LONGEST_INTEGER = 4300
"""Digits of the longest whole number that Python converts."""

BLANKS = " \t\n\r"
"""What JSON allows between values."""

_NOT_BLANK = re.compile(rf"[^{BLANKS}]")
_MARGIN = 16
"""An error this close to the end of what was read may be due to a value cut in two, such as `fal`."""

_BYTE_ORDER_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


class Item(NamedTuple):
    """A value, and where the file holds it."""

    start: int
    """Byte of the file."""
    size: int
    """Bytes."""
    value: Any
    error: str | None
    """Why it has no value; None if it has one."""


def _read_integer(digits: str) -> float:
    """Reads a whole number; one of more digits than Python converts is infinite, since no field that is read is one."""
    return int(digits) if len(digits) <= LONGEST_INTEGER else math.inf


class Decoder:
    """Decodes JSON values; NaN and Infinity, which Python's own decoder takes, are errors."""

    def __init__(self) -> None:
        self._invalid: list[str] = []
        self._decoder = json.JSONDecoder(parse_constant=self._invalid.append, parse_int=_read_integer)

    def decode_at(self, text: str, start: int) -> tuple[Any, int, str | None]:
        """Decodes the value that begins at `start`.

        Returns:
            The value; where it ends; an error, if it is readable but not JSON.

        Raises:
            ValueError: it is not readable.
        """
        self._invalid.clear()
        try:
            value, end = self._decoder.raw_decode(text, start)
        except RecursionError:
            raise ValueError("brackets are nested too deeply") from None
        return (
            value,
            end,
            f"{self._invalid[0]} is not JSON; allowed are numbers and null" if self._invalid else None,
        )

    def decode(self, data: bytes) -> Any:
        """Decodes a whole text.

        Raises:
            ValueError: it is not UTF-8, or not one JSON value.
        """
        try:
            text = data.decode("utf-8").strip(BLANKS)
        except UnicodeDecodeError as error:
            raise ValueError(f"it is not UTF-8 (byte {error.start})") from None
        try:
            value, end, problem = self.decode_at(text, 0)
        except json.JSONDecodeError as error:
            raise ValueError(f"it is not JSON: {error.msg} (column {error.pos + 1})") from None
        if end < len(text):
            raise ValueError(f"after its end is {text[end : end + 20]!r}; allowed is one value")
        if problem is not None:
            raise ValueError(problem)
        return value


def scan_items(path: Path) -> Iterator[Item]:
    """Reads the items of a JSON list, or of a file with a JSON object per line; which, its first character says.

    Raises:
        ValueError: the file is empty, neither of these, or damaged; a damaged line is an `Item` with an error.
    """
    with path.open("rb") as file:
        head = file.read(4)
        if encoding := _BYTE_ORDER_MARKS.get(head[:2]):
            raise ValueError(f"{path} is {encoding}; save it as UTF-8")
        if b"\0" in head and head.replace(b"\0", b"")[:1] in (b"[", b"{"):
            raise ValueError(f"{path} begins with {head!r}, as UTF-16 or UTF-32 without a mark does; save it as UTF-8")
        start = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
        file.seek(start)
        while blank := file.peek(1)[:1]:  # type: ignore[attr-defined]
            if not blank.isspace():
                break
            file.read(1)
        if blank == b"[":
            yield from _ListReader(path, file).items()
        elif blank == b"{":
            yield from _scan_lines(path, file)
        elif blank:
            raise ValueError(
                f"{path} is not a JSON file: it begins with {file.read(16)!r}; allowed are a list of objects and an"
                " object per line"
            )
        else:
            raise ValueError(f"{path} is empty; allowed are a JSON list of objects and an object per line")


def _scan_lines(path: Path, file: BinaryIO) -> Iterator[Item]:
    decoder = Decoder()
    start, is_first = file.tell(), True
    while line := file.readline(LONGEST_ITEM + 1):
        if len(line) > LONGEST_ITEM:
            raise ValueError(f"{path}: the line that begins at byte {start} is longer than {LONGEST_ITEM} bytes")
        if not line.isspace():
            value: Any = None
            problem: str | None = None
            try:
                value = decoder.decode(line)
            except ValueError as error:
                problem = str(error)
                if not line.endswith(b"\n") and _breaks_off(line):
                    raise ValueError(f"{path}: the last line, from byte {start}, is cut: {problem}") from None
            if is_first and path.suffix != ".jsonl" and (problem or "conversations" not in value):
                raise ValueError(
                    f"{path} begins with an object that {'does not end on its line' if problem else 'is not a sample'};"
                    " allowed are a JSON list of samples, and a sample per line"
                )
            yield Item(start, len(line), value, problem)
            is_first = False
        start += len(line)


def _breaks_off(line: bytes) -> bool:
    """Whether a line is an incomplete JSON object."""
    text = line.decode("utf-8", "ignore").strip()
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return text.startswith("{") and error.msg != "Extra data" and _is_cut(error, len("false"))
    except RecursionError:
        return False
    return False


def _is_cut(error: json.JSONDecodeError, margin: int) -> bool:
    """Whether a text is not JSON because it ends too early: in a string, or within `margin` characters of the error."""
    return error.msg.startswith("Unterminated string") or error.pos >= len(error.doc) - margin


class _ListReader:
    """Reads a JSON list piece by piece."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._text = ""  # decoded text; what is in front of _position was taken
        self._position = 0
        self._byte = file.tell()  # place of _text[_position] in the file
        self._read = self._byte  # bytes read so far
        self._is_ascii = True  # whether _text is
        self._is_complete = False  # whether the file was read to its end
        self._number = 0

    def items(self) -> Iterator[Item]:
        decoder = Decoder()
        self._advance(self._position + 1 if self._next() == "[" else 0)
        if self._next() == "]":
            raise ValueError(f"{self._path} is an empty list; it must hold samples")
        while True:
            self._next()
            value, end, problem = self._decode(decoder)
            start = self._byte
            self._advance(end)
            yield Item(start, self._byte - start, value, problem)
            self._number += 1
            mark = self._next()
            if mark not in {",", "]"}:
                self._fail("another item, a comma or ] must follow it", self._number - 1)
            self._advance(self._position + 1)
            if mark == "]":
                break
            if self._next() == "]":
                self._fail("a comma follows the last item; remove it", self._number - 1)
        if rest := self._next():
            self._fail(f"{rest!r} follows the end of the list; the list must be all", self._number - 1)

    def _decode(self, decoder: Decoder) -> tuple[Any, int, str | None]:
        """Decodes the item at the position, reading as much of the file as that takes."""
        step = CHUNK
        while True:
            try:
                value, end, problem = decoder.decode_at(self._text, self._position)
            except json.JSONDecodeError as error:
                is_cut = _is_cut(error, _MARGIN)
                if not is_cut or self._is_complete:
                    end_of_file = " at the end of the file, which may be truncated" if is_cut else ""
                    self._fail(f"{error.msg}{end_of_file}", self._number, error.pos)
            except ValueError as error:
                self._fail(str(error), self._number)
            else:
                # A number near the end of the text may be cut: of 1.5 the text may hold 1 and the point.
                if isinstance(value, (dict, list)) or end < len(self._text) - _MARGIN or self._is_complete:
                    return value, end, problem
            if len(self._text) - self._position > LONGEST_ITEM:
                self._fail(f"it is longer than {LONGEST_ITEM} bytes; a quotation mark may be missing", self._number)
            self._read_more(step)
            step *= 2  # a long item is decoded again from its start: a fixed step would make that quadratic

    def _next(self) -> str:
        """Moves to the next character that is not blank; "" at the end of the file."""
        while True:
            mark = self._text[self._position : self._position + 1]
            if mark and mark not in BLANKS:
                return mark
            if mark:
                rest = _NOT_BLANK.search(self._text, self._position)
                self._advance(rest.start() if rest else len(self._text))
            elif self._is_complete:
                return ""
            else:
                self._read_more(CHUNK)

    def _advance(self, end: int) -> None:
        passed = end - self._position
        self._byte += passed if self._is_ascii else len(self._text[self._position : end].encode("utf-8"))
        self._position = end

    def _read_more(self, size: int) -> None:
        data = self._file.read(size)
        self._is_complete = not data
        begin = self._read - len(self._utf8.getstate()[0])  # of bytes that are not decoded yet
        try:
            more = self._utf8.decode(data, final=self._is_complete)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self._path} is not UTF-8 at byte {begin + error.start}; save it as UTF-8") from None
        self._read += len(data)
        self._text = self._text[self._position :] + more
        self._position = 0
        self._is_ascii = self._text.isascii()

    def _fail(self, problem: str, number: int, position: int | None = None) -> None:
        """Raises ValueError, with the line; it is counted only now."""
        place = self._position if position is None else position
        byte = self._byte + len(self._text[self._position : place].encode("utf-8"))
        raise ValueError(f"{self._path}: sample {number}, line {_count_lines(self._path, byte)}: {problem}")


def _count_lines(path: Path, byte: int) -> int:
    """Finds the line, from 1, that a byte of a file is on."""
    lines, left = 1, byte
    with path.open("rb") as file:
        while left > 0 and (data := file.read(min(left, CHUNK))):
            lines += data.count(b"\n")
            left -= len(data)
    return lines
