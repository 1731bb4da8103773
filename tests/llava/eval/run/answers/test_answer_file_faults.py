"""What crashes leave in a file of answers is repaired; what the runner did not write is never changed."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava.command import format_error
from llava.eval.run.answers import jsonl
from llava.eval.run.answers.answer_file import AnswerFile, is_row_start
from llava.eval.run.answers.lock import only_run
from llava.eval.run.inputs.questions import Question

SETTINGS = {"tower": "qlip", "alpha": 0.8}
NAMES: tuple[int | str, ...] = ("a", 7, 'q"\\', "b", "b")
QUESTIONS = [Question(name, f"What is {name}?\n“A” or B", "", None) for name in NAMES]

ROWS = [
    '{"question_id": "a", "prompt": "What is a?\\n\\u201cA\\u201d or B", "text": "x"',
    '{"question_id": 7, "prompt": "What is 7?\\n\\u201cA\\u201d or B", "text": "{\\"y\\": 1}"',
    '{"question_id": "q\\"\\\\", "prompt": "What is q\\"\\\\?\\n\\u201cA\\u201d or B", "text": ""',
    '{"question_id": "b", "prompt": "What is b?\\n\\u201cA\\u201d or B", "text": "x\\n"',
    '{"question_id": "b", "prompt": "What is b?\\n\\u201cA\\u201d or B", "text": "z"',
]
LINES = [
    row.encode() + b', "answer_id": "0", "model_id": "m", "metadata": {"index": %d, "image": null, "tower": "qlip",'
    b' "alpha": 0.8}}\n' % index
    for index, row in enumerate(ROWS)
]
"""What a run writes, by hand."""

WHOLE = b"".join(LINES)

BLANKS = st.lists(st.sampled_from([b"\0", b"\n", b" ", b"\r\n", b"\t"]), max_size=4).map(b"".join)
VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=9)
JSON = VALUES | st.lists(VALUES, max_size=4) | st.dictionaries(st.text(max_size=9), VALUES, max_size=4)
LLAVAS_ROW = st.fixed_dictionaries({"question_id": st.integers() | st.text(), "prompt": st.text(), "text": st.text()})
OTHER_CONTENT = st.one_of(
    st.binary(min_size=1),
    st.text(min_size=1).map(str.encode),
    JSON.map(lambda value: json.dumps(value).encode()),
    JSON.map(lambda value: json.dumps(value, indent=1).encode() + b"\n"),
    st.lists(st.sampled_from([b"id,text\n", b"1,x\n", b"2,", b"\r\n"]), min_size=2).map(
        lambda cells: b"1," + b"".join(cells)
    ),
    LLAVAS_ROW.map(lambda row: json.dumps(row).encode() + b"\n"),  # of LLaVA's own runner, without metadata
)

laws = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def begun(path: Path, resume: bool = True) -> AnswerFile:
    """The steps of a run up to its first answer."""
    answers = AnswerFile(path)
    answers.check_place()
    answers.check_rows(QUESTIONS, resume)
    if resume:
        answers.check_same_settings(SETTINGS)
    answers.start(resume)
    return answers


def row(index: int) -> dict[str, Any]:
    return json.loads(LINES[index])


def is_ours(content: bytes) -> bool:
    """Whether nothing but the beginning of a row, and blanks, is in a made-up file."""
    return is_row_start(content.strip(b"\0 \t\r\n"))


def test_a_full_disk_is_named_with_its_file_and_the_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system writes what fits, and then fails without naming a file."""
    path, room, write = tmp_path / "a.jsonl", [len(LINES[0]) + 20], os.write

    def fill(descriptor: int, content: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= (written := write(descriptor, content[: room[0]]))
        return written

    answers = begun(path)
    monkeypatch.setattr(jsonl.os, "write", fill)
    with pytest.raises(OSError) as caught:
        answers.append([row(0), row(1)])
    kept = "what was finished before is kept, and the same command continues"
    assert format_error(caught.value) == f"{path}: no space left on device; {kept}"
    with pytest.raises(OSError, match="No space left on device"):
        jsonl.replace(path, WHOLE)
    assert os.listdir(tmp_path) == ["a.jsonl"]
    monkeypatch.undo()
    assert begun(path).done() == {0}


@laws
@given(cut=st.integers(0, len(WHOLE)), blanks=BLANKS)
def test_after_a_crash_at_any_byte_just_the_missing_questions_are_asked(
    tmp_path: Path, cut: int, blanks: bytes
) -> None:
    """An answer counts once all of its JSON is there, be the line's end there or not."""
    path = tmp_path / "answers.jsonl"
    path.write_bytes(WHOLE[:cut] + blanks)
    ends = [len(b"".join(LINES[: number + 1])) - 1 for number in range(len(LINES))]
    kept = {number for number, end in enumerate(ends) if cut >= end}
    answers = begun(path)
    assert answers.done() == kept
    assert path.read_bytes() == b"".join(LINES[: len(kept)])
    answers.append([row(index) for index in range(len(LINES)) if index not in kept])
    assert path.read_bytes() == WHOLE
    assert answers.finish() == (len(LINES), 0)


@laws
@given(content=OTHER_CONTENT, resume=st.booleans(), ours=st.integers(0, len(LINES) - 1))
def test_a_file_of_another_kind_stays_as_it_is(tmp_path: Path, content: bytes, resume: bool, ours: int) -> None:
    """With or without the runner's own rows before it, starting over or not."""
    path = tmp_path / "answers.jsonl"
    if is_ours(content):
        return
    for whole in (content, b"".join(LINES[:ours]) + content):
        path.write_bytes(whole)
        with pytest.raises(
            ValueError, match=r"answers.jsonl:\d+ is not an answer of this runner.*another --answers-file"
        ):
            begun(path, resume)
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [
        b"notes without an end of line",
        b"notes\nwith ends of lines\n",
        b'{"a": 1}',
        b'{\n "question_id": 1,\n "text": "x"\n}\n',
        b"question_id,text\n1,x\n",
        b'{"question_id": 1, "image": "a.png", "text": "What?"}\n',
        b'{"question_id": 1, "image": "a.png", "text": "What?"}',
        b'{"question_id": 1, "image": "a.png", "te',
        b'{"question_id": 1, "prompt": "p", "text": "x", "metadata": {}}\n',
        b'{"question_id": 1, "prompt": "p", "text": "x", "metadata": {"index": true}}\n',
        b'{"question_id": 1, "prompt": "p", "text": "x", "metadata": {"index": -1}}\n',
        b'{"question_id": 1, "prompt": "p", "text": 1, "metadata": {"index": 0}}\n',
        b"[" * 100_000,
        b"\x89PNG\r\n\x1a\n" + bytes(40),
        bytes(8) + b"\n" + LINES[0],
        LINES[0][:40] + b"\n" + LINES[1],
    ],
)
@pytest.mark.parametrize("name", ["answers.jsonl", "answers.errors.jsonl", "answers.jsonl.part0"])
def test_files_that_are_easily_taken_for_answers_stay(tmp_path: Path, content: bytes, name: str) -> None:
    """The file of errors and the parts of several processes are looked at, too."""
    (tmp_path / name).write_bytes(content)
    for resume in (True, False):
        with pytest.raises(ValueError, match=f"{name}:1 is not an answer"):
            begun(tmp_path / "answers.jsonl", resume)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {name: content}


def test_blank_lines_between_answers_and_other_line_ends_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(LINES[0] + b"\n \r\n" + LINES[1].replace(b"\n", b"\r\n"))
    assert begun(path).done() == {0, 1}
    assert path.read_bytes() == LINES[0] + LINES[1]


@pytest.mark.parametrize("name", ["answers.jsonl", "answers.errors.jsonl", "answers.jsonl.part1"])
@pytest.mark.parametrize(("make", "kind"), [(Path.mkdir, "a folder"), (os.mkfifo, "a pipe")])
def test_a_folder_or_a_pipe_is_refused_without_being_opened(tmp_path: Path, name: str, make: Any, kind: str) -> None:
    make(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is {kind}; it must be a regular file"):
        begun(tmp_path / "answers.jsonl", resume=False)


def test_a_device_is_refused() -> None:
    with pytest.raises(ValueError, match="/dev/null is a device"):
        begun(Path("/dev/null"))


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_file_that_is_read_is_never_written_by_whatever_name(tmp_path: Path, link: Any) -> None:
    questions, other = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    questions.write_bytes(WHOLE)
    link(other, questions)
    for name in (questions, other):
        with pytest.raises(ValueError, match="same file as .*questions.jsonl, which is read; name another --answers-"):
            AnswerFile(name).check_place(questions)


def test_a_symbolic_link_stays_one_and_all_is_written_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    file, link, second = tmp_path / "disk" / "a.jsonl", tmp_path / "link.jsonl", tmp_path / "second.jsonl"
    link.symlink_to(Path("disk") / "a.jsonl")
    second.symlink_to(link)
    for start in (b"", LINES[1] + LINES[0]):
        file.write_bytes(start)
        answers = begun(link)
        answers.append([row(2), {"question_id": "b", "error": "lost", "metadata": {"index": 3}}])
        answers.finish()
        assert link.is_symlink() and not file.is_symlink()
        assert begun(second).done() == answers.done()
    with only_run(answers.path), pytest.raises(ValueError, match="another run"), only_run(AnswerFile(second).path):
        pytest.fail("both are at it")
    assert sorted(os.listdir(tmp_path)) == ["disk", "link.jsonl", "second.jsonl"]
    assert os.listdir(tmp_path / "disk") == ["a.jsonl"]


def test_a_link_to_a_file_that_is_not_there_yet_makes_it(tmp_path: Path) -> None:
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "file.jsonl")
    begun(link).append([row(0)])
    assert link.is_symlink() and (tmp_path / "file.jsonl").read_bytes() == LINES[0]


def test_another_name_of_the_file_keeps_its_content(tmp_path: Path) -> None:
    """A backup made of hard links, say."""
    path, backup = tmp_path / "answers.jsonl", tmp_path / "backup.jsonl"
    path.write_bytes(LINES[0])
    backup.hardlink_to(path)
    begun(path).append([row(1)])
    assert (path.read_bytes(), backup.read_bytes()) == (LINES[0] + LINES[1], LINES[0])


def test_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(LINES[1] + LINES[0])
    path.chmod(0o640)
    begun(path)
    assert path.read_bytes() == LINES[0] + LINES[1]
    assert path.stat().st_mode & 0o777 == 0o640


def test_files_whose_names_only_resemble_a_parts_are_left_alone(tmp_path: Path) -> None:
    names = ("answers.jsonl.part0.txt", "answers.jsonl.partial", "answers.jsonl.new", "answers.shares.jsonl")
    for name in names:
        (tmp_path / name).write_text("notes")
    answers = begun(tmp_path / "answers.jsonl", resume=False)
    answers.append([row(1), row(0)])
    answers.finish()
    assert {name: (tmp_path / name).read_text() for name in names} == dict.fromkeys(names, "notes")
