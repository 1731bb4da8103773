"""The benchmarks' files are read as LLaVA's scripts read them: each expected prompt is written out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.eval import eval_science_qa
from llava.eval.run.inputs.questions import Question, chunk, read_lines, read_mmbench, read_science
from tests.llava.eval.files import write_json

PICTURE = "iVBOR" + "A" * 80
FOLDER = Path("pictures")
LETTER = "\nAnswer with the option's letter from the given choices directly."


def table(path: Path, *rows: dict[str, str], without: str = "") -> Path:
    columns = [name for name in ("index", "question", "hint", "A", "B", "C", "D", "answer", "image") if name != without]
    lines = ["\t".join(columns), *("\t".join(row.get(name, "") for name in columns) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


ROW = {"index": "241", "question": "Which?", "hint": "nan", "A": "red", "B": "blue", "answer": "A", "image": PICTURE}


def test_json_lines_may_repeat_a_question_id(tmp_path: Path) -> None:
    lines = [{"question_id": "art/1.png", "image": "1.png", "text": text} for text in ("Is it red?", "Is it blue?")]
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    assert read_lines(file, FOLDER) == [
        Question("art/1.png", text, text, FOLDER / "1.png", "1.png", index=i)
        for i, text in enumerate(("Is it red?", "Is it blue?"))
    ]


@pytest.mark.parametrize(("single", "ending"), [(False, ""), (True, LETTER)])
def test_scienceqa_has_questions_with_and_without_pictures(tmp_path: Path, single: bool, ending: str) -> None:
    said = [{"from": "human", "value": "<image>\nWhich?\n(A) x (B) y"}, {"from": "gpt", "value": "A"}]
    file = tmp_path / "q.json"
    imageless = [{"from": "human", "value": "Why?"}]
    file.write_text(json.dumps([{"id": "4", "conversations": said, "image": "4/image.png"},
                                {"id": "5", "conversations": imageless}]))  # fmt: skip
    text = "Which?\n(A) x (B) y" + ending
    assert read_science(file, FOLDER, single) == [
        Question("4", f"<image>\n{text}", text, FOLDER / "4/image.png", "4/image.png"),
        Question("5", f"Why?{ending}", f"Why?{ending}", None, None, index=1),
    ]


def test_mmbench_puts_hint_question_and_options_under_each_other(tmp_path: Path) -> None:
    file = table(tmp_path / "q.tsv", ROW | {"hint": "Look."})
    (question,) = read_mmbench(file)
    assert question.question_id == 241
    assert question.prompt == question.text == "Look.\nWhich?\nA. red\nB. blue"
    assert question.image == f"data:image;base64,{PICTURE}"
    assert question.image_name is not None and question.image_name.startswith("sha256:")
    assert question.extra == {"round_id": 0, "options": ["red", "blue"], "option_char": ["A", "B"]}


@pytest.mark.parametrize("image", [None, ""])
def test_an_empty_image_of_scienceqa_is_none(tmp_path: Path, image: str | None) -> None:
    """By the scorer's groups the question is one without an image."""
    asked = [{"id": "1", "conversations": [{"from": "human", "value": "How many?"}], "image": image}]
    (question,) = read_science(write_json(tmp_path / "q.json", asked), FOLDER)
    assert (question.image, question.image_name, question.prompt) == (None, None, "How many?")
    problem = {"image": image, "hint": ""}
    assert eval_science_qa.GROUPS["NO"](problem) and not eval_science_qa.GROUPS["IMG"](problem)


def test_mmbenchs_cells_are_missing_where_pandas_finds_them_missing(tmp_path: Path) -> None:
    (question,) = read_mmbench(table(tmp_path / "q.tsv", ROW | {"hint": "NA", "B": "N/A", "C": "green"}))
    assert question.prompt == "Which?\nA. red"


def test_an_instruction_changes_what_identifies_a_question(tmp_path: Path) -> None:
    file = table(tmp_path / "q.tsv", ROW)
    ways: tuple[dict[str, Any], ...] = ({}, *({"single_pred_prompt": True, "lang": lang} for lang in ("en", "cn")))
    asked = [read_mmbench(file, **way)[0] for way in ways]
    assert len({question.prompt for question in asked}) == 1 and len({question.text_hash for question in asked}) == 3


def test_mmbench_rounds_move_the_options_up_under_fixed_letters(tmp_path: Path) -> None:
    file = table(tmp_path / "q.tsv", ROW | {"C": "green"})
    rounds = read_mmbench(file, all_rounds=True)
    assert [question.prompt for question in rounds] == [
        "Which?\nA. red\nB. blue\nC. green",
        "Which?\nA. blue\nB. green\nC. red",
        "Which?\nA. green\nB. red\nC. blue",
    ]
    assert [question.extra["option_char"] for question in rounds] == [
        ["A", "B", "C"],
        ["B", "C", "A"],
        ["C", "A", "B"],
    ]
    assert [question.extra["round_id"] for question in rounds] == [0, 1, 2]
    assert [question.index for question in rounds] == [0, 1, 2]


def test_a_picture_inside_mmbenchs_table_is_named_by_its_content(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"index": "2"}, ROW | {"index": "3", "image": PICTURE + "B"}]
    names = [question.image_name for question in read_mmbench(table(tmp_path / "q.tsv", *rows))]
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize(("lang", "ending"), [("en", LETTER), ("cn", "\n请直接回答选项字母。")])
def test_mmbenchs_demand_for_a_letter_is_asked_but_not_repeated(tmp_path: Path, lang: str, ending: str) -> None:
    (question,) = read_mmbench(table(tmp_path / "q.tsv", ROW), single_pred_prompt=True, lang=lang)
    assert question.prompt == "Which?\nA. red\nB. blue"
    assert question.text == question.prompt + ending


def test_a_row_of_mmbench_may_name_the_row_that_holds_its_picture(tmp_path: Path) -> None:
    file = table(tmp_path / "q.tsv", ROW, ROW | {"index": "1000241", "image": "241"})
    assert [question.image for question in read_mmbench(file)] == [f"data:image;base64,{PICTURE}"] * 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "holds no questions"),
        ('[{"id": 1}]', "entry 0 is not an object with id and conversations"),
        ('[{"id": 1, "conversations": []}]', "entry 0"),
        ("[3]", "entry 0"),
        ('[{"id": 1, "conversations": [{"value": null}]}]', "entry 0"),
        ('[{"id": 1, "conversations": [{"value": "?"}], "image": 3}]', "entry 0: image is 3; it must be a file's name"),
        ('[{"id": 1, "conversations": [{"value": "?"}], "image": ["a.jpg"]}]', r'image is \["a.jpg"\]; it must be a'),
        (r'[{"id": 1, "conversations": [{"value": "\ud800"}]}]', "entry 0: the question contains a lone surrogate"),
    ],
)
def test_a_file_that_is_no_scienceqa_is_named(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "q.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=f"q.json.*{words}"):
        read_science(file, FOLDER)


@pytest.mark.parametrize(
    ("rows", "without", "words"),
    [
        ([ROW], "hint", "has no column hint"),
        ([ROW | {"image": ""}], "", "row 241 has no image"),
        ([ROW | {"image": "9"}], "", "row 241 has no image"),
        ([], "", "holds no questions"),
    ],
)
def test_a_table_that_is_no_mmbench_is_named(tmp_path: Path, rows: Any, without: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_mmbench(table(tmp_path / "q.tsv", *rows, without=without))


@pytest.mark.parametrize(("length", "count"), [(0, 1), (1, 3), (7, 3), (9, 3), (5, 8)])
def test_chunks_are_llavas_and_cover_everything_once(length: int, count: int) -> None:
    items = list(range(length))
    chunks = [list(chunk(items, count, index)) for index in range(count)]
    assert [i for some in chunks for i in some] == items
    size = -(-length // count)  # LLaVA's split_list, which leaves out the empty ones
    assert [some for some in chunks if some] == [items[i : i + size] for i in range(0, length, size or 1)]


@pytest.mark.parametrize(("count", "index"), [(0, 0), (2, 2), (2, -1)])
def test_an_absent_chunk_is_refused(count: int, index: int) -> None:
    with pytest.raises(ValueError, match=f"chunk {index} of {count} chunks"):
        chunk([1, 2, 3], count, index)
