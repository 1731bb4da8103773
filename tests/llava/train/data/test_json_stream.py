"""Items of JSON files: the same as the standard library's, whatever the layout; damaged files are described."""

from __future__ import annotations

import json
import re
import tracemalloc
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.train.data import json_stream
from llava.train.data.json_stream import scan_items

SAMPLE = {"id": "a", "conversations": []}
LINE = json.dumps(SAMPLE)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from(['"\\', "]},[{", "\n\r", "\u2028"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def write(tmp_path):
    def write_file(content, name="samples.json"):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return file

    return write_file


@settings(max_examples=80)
@given(
    values=st.lists(VALUES, min_size=1, max_size=5),
    indent=st.sampled_from([None, 0, 2]),
    is_ascii=st.booleans(),
    begin=st.sampled_from(["", "\ufeff", "\r\n\t "]),
    chunk=st.sampled_from([1, 2, 3, 7, 64]),
)
def test_a_list_gives_its_items_and_their_places(tmp_path_factory, values, indent, is_ascii, begin, chunk):
    file = tmp_path_factory.getbasetemp() / "list.json"
    text = begin + json.dumps(values, indent=indent, ensure_ascii=is_ascii) + "\n "
    file.write_bytes(text.encode("utf-8"))
    with patch.object(json_stream, "CHUNK", chunk):
        items = list(scan_items(file))
    assert [item.value for item in items] == values
    content = file.read_bytes()
    assert [json.loads(content[item.start : item.start + item.size]) for item in items] == values


@settings(max_examples=40)
@given(
    values=st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), min_size=1, max_size=5),
    end=st.sampled_from(["\n", "\r\n", "\n\n  \n"]),
    begin=st.sampled_from(["", "\ufeff", "\n"]),
)
def test_lines_give_their_items_and_their_places(tmp_path_factory, values, end, begin):
    file = tmp_path_factory.getbasetemp() / "lines.jsonl"
    file.write_bytes((begin + end.join(map(json.dumps, values))).encode("utf-8"))
    items = list(scan_items(file))
    assert [item.value for item in items] == values
    content = file.read_bytes()
    assert [json.loads(content[item.start : item.start + item.size]) for item in items] == values


def test_lines_may_be_called_json(write):
    assert [item.value for item in scan_items(write(f"{LINE}\n{LINE}\n"))] == [SAMPLE, SAMPLE]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        (" \r\n\t\n", "is empty"),
        ("[]", "is an empty list"),
        ("[ \n ]", "is an empty list"),
        ("id,question\n1,2", r"is not a JSON file: it begins with b'id,question"),
        (b"\x1f\x8b\x08\x00", r"is not a JSON file: it begins with b'\\x1f"),
        (LINE.encode("utf-16"), "is UTF-16; save it as UTF-8"),
        (LINE.encode("utf-16-le"), "as UTF-16 or UTF-32 without a mark does; save it as UTF-8"),
        (f"[{LINE}]".encode("utf-32-be"), "as UTF-16 or UTF-32 without a mark does; save it as UTF-8"),
        (f'[{LINE}, {{"id": "é"}}]'.encode("latin-1"), "is not UTF-8 at byte 43; save it as UTF-8"),
        (b'[{"id": "\xc3', "is not UTF-8 at byte 9"),
        (json.dumps({"data": [SAMPLE]}), "begins with an object that is not a sample"),
        (json.dumps({"data": [SAMPLE]}, indent=2), "begins with an object that does not end on its line"),
        (f"[{LINE},\n{LINE},\n]", "sample 1, line 3: a comma follows the last item; remove it"),
        (f"[{LINE}\n{LINE}]", r"sample 0, line 2: another item, a comma or \] must follow it"),
        (f"[{LINE}]\n\n[{LINE}]", r"sample 0, line 3: '\[' follows the end of the list"),
        (f"[{LINE},\n\n{LINE}", "sample 1, line 3: another item"),
        (f"[{LINE},\n", "sample 1, line 2: Expecting value at the end of the file, which may be truncated"),
        (
            f"[{LINE},\n{LINE[:15]}",
            "sample 1, line 2: Unterminated string.* at the end of the file, which may be trunc",
        ),
        (f"[{LINE},\n{LINE[:-2]}", "sample 1, line 2: .*at the end of the file, which may be truncated"),
        (f"[{LINE},\n{{'id': 'single quotes'}}" + " " * 20 + "]", "sample 1, line 2: Expecting property name"),
        (f'[{LINE},\n{{"id": "a\nb"{" " * 20}}}]', "sample 1, line 2: Invalid control character"),
        ("[" + "[" * 200_000 + "]" * 200_001, "sample 0, line 1: brackets are nested too deeply"),
    ],
)
def test_a_damaged_file_is_described(write, content, message):
    file = write(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(file))}.*{message}"):
        list(scan_items(file))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": ', r"it is not JSON: Expecting value \(column 7\)"),
        (LINE + ",", "after its end is ','; allowed is one value"),
        (LINE + LINE, "after its end is '{"),
        ('{"score": NaN}', "NaN is not JSON; allowed are numbers and null"),
        ('{"score": -Infinity}', "-Infinity is not JSON"),
        ('{"a":' * 200_000, "brackets are nested too deeply"),
        (b'{"id": "\xe9"}', r"it is not UTF-8 \(byte 8\)"),
        ("garbage", "it is not JSON"),
    ],
)
def test_a_damaged_line_leaves_the_others(write, line, message):
    line = line if isinstance(line, bytes) else line.encode()
    items = list(scan_items(write(b"\n".join([LINE.encode(), line, LINE.encode()]), "samples.jsonl")))
    assert [item.value for item in items if item.error is None] == [SAMPLE, SAMPLE]
    assert re.match(message, items[1].error)


def test_a_file_of_lines_that_ends_early_is_named(write):
    file = write(f"{LINE}\n{LINE[:-5]}", "samples.jsonl")
    with pytest.raises(ValueError, match=f"{re.escape(str(file))}: the last line, from byte {len(LINE) + 1}, is cut"):
        list(scan_items(file))


@pytest.mark.parametrize("end", ["# end", "not json", "\0\0", "\x1a", "{'id': 1, 'conversations': []}", LINE + ","])
def test_a_last_line_that_is_no_sample_leaves_the_others(write, end):
    items = list(scan_items(write(f"{LINE}\n{end}", "samples.jsonl")))
    assert [item.error is None for item in items] == [True, False]


def test_nan_in_a_list_leaves_the_other_items(write):
    items = list(scan_items(write('[{"a": 1}, {"a": NaN}, {"a": 2}]')))
    assert [item.value["a"] for item in items if item.error is None] == [1, 2]
    assert items[1].error == "NaN is not JSON; allowed are numbers and null"


def test_a_number_of_thousands_of_digits_leaves_the_items_as_they_are(write):
    """Python converts none of more than 4300 digits; ids are not read."""
    long = "9" * 5000
    items = list(scan_items(write(f'[{{"id": {long}, "a": 1}}, {{"id": -{long}}}, {{"id": 12}}]')))
    assert [item.error for item in items] == [None] * 3
    assert items[0].value["a"] == 1 and items[2].value == {"id": 12}


@pytest.mark.parametrize("name", ["samples.json", "samples.jsonl"])
def test_an_item_without_end_does_not_fill_the_memory(write, name):
    opened = "[" if name.endswith("json") else ""
    file = write(f'{opened}{{"id": "{"x" * 5000}"}}', name)
    with (
        patch.object(json_stream, "LONGEST_ITEM", 1000),
        patch.object(json_stream, "CHUNK", 100),
        pytest.raises(ValueError, match="longer than 1000 bytes"),
    ):
        list(scan_items(file))


@pytest.mark.parametrize(("first", "join", "last"), [("[", ",\n", "]"), ("", "\n", "\n")])
def test_memory_does_not_grow_with_the_file(write, first, join, last):
    line = json.dumps({"conversations": [{"value": "x" * 2000 + "é"}]}, ensure_ascii=False)
    file = write(first + join.join([line] * 2000) + last)
    assert file.stat().st_size > 4_000_000
    with patch.object(json_stream, "CHUNK", 2**15):
        tracemalloc.start()
        assert sum(1 for _ in scan_items(file)) == 2000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 500_000
