"""Files with null, numbers or other kinds of values where text is meant: read as text, or named in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llava.eval import (
    eval_cvbench,
    eval_gqa,
    eval_mmbench,
    eval_pope,
    eval_realworldqa,
    eval_science_qa,
    eval_seed,
    eval_textvqa,
    eval_vstar,
)
from tests.llava.eval.files import write_answers, write_json, write_rows
from tests.llava.eval.scoring import COLOURS, cv, gqa_question, labelled, problem, seed_question
from tests.llava.eval.test_eval_mmbench import table

Main = Callable[[Sequence[str]], int]
NAN = float("nan")
"""Written as NaN, as pandas' tables with gaps are by Python's json."""
Make = Callable[[Path], list[str]]
"""Writes a scorer's files to a folder, and returns the flags that name them, but for --result-file."""


def asked(**row: Any) -> Make:
    """One question in LLaVA's form, answered with "A"."""

    def make(folder: Path) -> list[str]:
        question = {"question_id": 0, "text": COLOURS} | row
        write_answers(folder / "a.jsonl", {0: "A"}, {0: question["text"]})
        return ["--question-file", str(write_rows(folder / "q.jsonl", [question]))]

    return make


def gqa(said: Any, **row: Any) -> Make:
    """One of GQA's questions, answered with `said`."""

    def make(folder: Path) -> list[str]:
        write_answers(folder / "a.jsonl", {"1": said})
        question = gqa_question("none", "verify", "attr") | row
        return ["--question-file", str(write_json(folder / "gqa.json", {"1": question}))]

    return make


def pope(text: Any, label: Any = "Is there a dog in the image?") -> Make:
    """One of POPE's questions and its label's."""

    def make(folder: Path) -> list[str]:
        write_answers(folder / "a.jsonl", {1: "no"})
        write_rows(folder / "coco" / "coco_pope_random.json", [{"image": "i.jpg", "text": label, "label": "no"}])
        row = {"question_id": 1, "image": "i.jpg", "text": text, "category": "random"}
        question_file = write_rows(folder / "q.jsonl", [row])
        return ["--annotation-dir", str(folder / "coco"), "--question-file", str(question_file)]

    return make


def seed(questions: Any, types: Any) -> Make:
    """SEED-Bench's file."""

    def make(folder: Path) -> list[str]:
        write_answers(folder / "a.jsonl", {"1": "A"})
        content = {"questions": questions, "question_type": types}
        return ["--annotation-file", str(write_json(folder / "SEED-Bench.json", content))]

    return make


def textvqa(data: Any) -> Make:
    """TextVQA's annotations."""

    def make(folder: Path) -> list[str]:
        write_answers(folder / "a.jsonl", {"1": "x"})
        return ["--annotation-file", str(write_json(folder / "val.json", {"data": data}))]

    return make


def science_qa(content: Any) -> Make:
    """ScienceQA's files with one problem."""

    def make(folder: Path) -> list[str]:
        write_answers(folder / "a.jsonl", {"1": "A"})
        write_json(folder / "problems.json", {"1": content})
        write_json(folder / "pid_splits.json", {"test": ["1"]})
        return ["--base-dir", str(folder)]

    return make


def mmbench(**row: Any) -> Make:
    """MMBench's table and one answer."""

    def make(folder: Path) -> list[str]:
        answer = {"question_id": 1, "round_id": 0, "text": "A", "options": ["red", "blue"], "option_char": ["A", "B"]}
        write_rows(folder / "a.jsonl", [answer | row])
        return ["--annotation-file", str(table(folder))]

    return make


SEED = [seed_question("1", "A", "image", 1)]
COUNT = cv("COCO", "Count", "(A)")
IN_PLACE = {"category": "direct_attributes", "label": "A"}


@pytest.mark.parametrize(
    ("main", "make", "words"),
    [
        (eval_realworldqa.main, asked(answer=None), "q.jsonl:1: answer is null or NaN; it must be text"),
        (eval_realworldqa.main, asked(answer=NAN), "q.jsonl:1: answer is null or NaN; it must be text"),
        (
            eval_cvbench.main,
            asked(**COUNT | {"answer": 2}),
            "question 0: answer is '2'; it must be",
        ),
        (
            eval_cvbench.main,
            asked(**COUNT | {"task": ["Count"]}),
            "task is ['Count']; it must be text",
        ),
        (eval_vstar.main, asked(**IN_PLACE | {"label": True}), "q.jsonl:1: label is True; it must be text"),
        (eval_vstar.main, asked(**IN_PLACE | {"text": {}}), "q.jsonl:1: text is {}; it must be text"),
        (
            eval_vstar.main,
            asked(**IN_PLACE | {"text": "\ud800"}),
            r"q.jsonl:1: text contains a lone surrogate, '\ud800'",
        ),
        (eval_gqa.main, gqa(None), "a.jsonl:1: text is null or NaN; it must be text"),
        (eval_gqa.main, gqa(NAN), "a.jsonl:1: text is null or NaN; it must be text"),
        (eval_gqa.main, gqa("none", types=None), "types of question '1' is None; it must have structural and semantic"),
        (eval_gqa.main, gqa("none", answer=None), "question '1': answer is null or NaN; it must be text"),
        (eval_gqa.main, gqa("none", answer=NAN), "question '1': answer is null or NaN; it must be text"),
        (eval_pope.main, pope([]), "q.jsonl:1: text is []; it must be text"),
        (
            eval_pope.main,
            pope("Is there a dog in the image?", None),
            "random.json:1: text is null or NaN; it must be text",
        ),
        (eval_seed.main, seed(SEED, ["all"]), "question_type is a list; it must map the types' names to numbers"),
        (eval_seed.main, seed(None, {"all": 1}), "questions is a NoneType; it must be a list"),
        (eval_seed.main, seed([7], {"all": 1}), "questions[0]: a int; it must be an object"),
        (eval_textvqa.main, textvqa(["x"]), "data[0]: a str; it must be an object"),
        (eval_textvqa.main, textvqa({}), "data is a dict; it must be a list"),
        (
            eval_textvqa.main,
            textvqa([{"image_id": "1", "question": "What?", "answers": None}]),
            "answers of '1' / 'what?' is None; it must list the annotators' texts",
        ),
        (eval_science_qa.main, science_qa(None), "problem '1': a NoneType; it must be an object"),
        (
            eval_science_qa.main,
            science_qa(problem("natural", 2, 0) | {"choices": None}),
            "problem '1': choices is None; it must be a list",
        ),
        (eval_mmbench.main, mmbench(round_id="x"), "question_id is '1', round_id 'x'; they must be whole numbers"),
        (eval_mmbench.main, mmbench(options=None), "options are None, option_char ['A', 'B']; every option needs a"),
        (eval_mmbench.main, mmbench(option_char=["A"]), "option_char ['A']; every option needs a letter"),
    ],
)
def test_what_is_no_text_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], main: Main, make: Make, words: str
) -> None:
    flags = make(tmp_path)
    assert main([*flags, "--result-file", str(tmp_path / "a.jsonl")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_numbers_are_read_as_text(tmp_path: Path) -> None:
    """As files hold them whose writer did not quote an answer."""
    question = {"text": "How many?", "answer": 2}
    rows = labelled(tmp_path, eval_realworldqa.main, [(question, "Two."), (question, "three")])  # type: ignore[arg-type]
    assert rows["open"] == {"accuracy": 50.0, "questions": 2}
    rows = labelled(tmp_path, eval_realworldqa.main, [(question, 2)])  # type: ignore[list-item]
    assert rows["open"] == {"accuracy": 100.0, "questions": 1}
