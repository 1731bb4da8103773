"""MMBench and CircularEval on hand-made answers, scored by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.eval import eval_mmbench
from tests.llava.eval.files import write_rows

HEADER = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "image")
OPTIONS = {1: ["cat", "dog", "cow", "ant"], 2: ["red", "blue"], 3: ["one", "two"]}
ANSWERS = {1: "B", 2: "A", 3: "B"}


def table(folder: Path, copies: bool = False, answers: dict[int, str] = ANSWERS) -> Path:
    """Three questions; with `copies`, a row for each rotation of their options, a million further on each time."""
    lines = ["\t".join(HEADER)]
    for index, options in OPTIONS.items():
        for turn in range(len(options) if copies else 1):
            turned = options[turn:] + options[:turn]
            letter = answers[index] and "ABCD"[("ABCD".index(answers[index]) - turn) % len(options)]
            cells = [*turned, *[""] * (4 - len(options))]
            group = "logic" if index == 1 else "look"
            lines.append("\t".join([f"{index + turn * 10**6}", "Which?", "", *cells, letter, group, group[0], "QUJD"]))
    path = folder / "mmbench.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


def row(index: int, text: str, turn: int = 0, options: list[str] | None = None) -> dict[str, Any]:
    """An answer as the runner writes it; in round `turn` the options are rotated so often."""
    own = OPTIONS[index % 10**6] if options is None else options
    chars = list("ABCD"[: len(own)])
    shown = {"options": own[turn:] + own[:turn], "option_char": chars[turn:] + chars[:turn]}
    return {"question_id": index, "round_id": turn, "prompt": "?", "text": text, **shown}


def run(folder: Path, annotation: Path, rows: list[dict[str, Any]]) -> dict[str, float]:
    answers = write_rows(folder / "a.jsonl", rows)
    flags = ["--annotation-file", str(annotation), "--result-file", str(answers), "--json", str(folder / "s.json")]
    assert eval_mmbench.main(flags) == 0
    scored = json.loads((folder / "s.json").read_text())["rows"]
    return {name: measured["accuracy"] for name, measured in scored.items()}


def test_one_order_by_hand(tmp_path: Path) -> None:
    """1: "dog" is B's text, right. 2: "A" right. 3: "A or B" names none. 2 of 3; logic 1 of 1, look 1 of 2."""
    scored = run(tmp_path, table(tmp_path), [row(1, "dog"), row(2, "A"), row(3, "A or B")])
    assert scored == {
        "first order": pytest.approx(200 / 3),
        "l2-category: l": pytest.approx(200 / 3),
        "category: logic": 100.0,
        "category: look": 50.0,
    }


ROUNDS = [
    # 1, "dog": stands as B, A, D, C in the four rounds, and is chosen in all.
    *(row(1, letter, turn) for turn, letter in enumerate("BADC")),
    # 2, "red": chosen in the first round, then the model stays with the letter.
    row(2, "A", 0),
    row(2, "A", 1),
    # 3, "two": wrong in the first round, right in the second.
    row(3, "A", 0),
    row(3, "A", 1),
]


def test_circular_eval_by_hand_from_rounds(tmp_path: Path) -> None:
    """First order: 1 and 2 right, 2 of 3. CircularEval: 1 alone, 1 of 3; by category logic 1 of 1, look 0 of 2."""
    scored = run(tmp_path, table(tmp_path), ROUNDS)
    assert scored["first order"] == pytest.approx(200 / 3)
    assert scored["CircularEval"] == pytest.approx(100 / 3)
    assert (scored["category: logic"], scored["category: look"]) == (100.0, 0.0)


def test_circular_eval_is_the_same_from_copies_in_the_table(tmp_path: Path) -> None:
    from_rounds = run(tmp_path, table(tmp_path), ROUNDS)
    copies = []
    for answer in ROUNDS:
        index, turn = answer["question_id"], answer["round_id"]
        copies.append(row(index + turn * 10**6, answer["text"], 0, answer["options"]))
    assert run(tmp_path, table(tmp_path, copies=True), copies) == from_rounds


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row(1, "B"), row(2, "A")], "1 of 3 questions have no answer, for example 3"),
        (ROUNDS[:-1], "question 3 was asked in 1 orders; CircularEval needs all 2"),
        ([*ROUNDS, ROUNDS[0]], "'1' / '0' is there a second time"),
        ([row(1, "B") | {"question_id": 9}], "there is an answer to question 9, which the table does not have"),
        ([{"question_id": 1, "round_id": 0, "text": "A"}], "the answer to question 1 has no options, option_char"),
    ],
)
def test_missing_second_and_stray_answers_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], words: str
) -> None:
    answers = write_rows(tmp_path / "a.jsonl", rows)
    assert eval_mmbench.main(["--annotation-file", str(table(tmp_path)), "--result-file", str(answers)]) == 2
    assert words in capsys.readouterr().err


def test_a_split_without_answers_is_for_the_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotation = table(tmp_path, answers=dict.fromkeys(OPTIONS, ""))
    answers = write_rows(tmp_path / "a.jsonl", [row(1, "B")])
    assert eval_mmbench.main(["--annotation-file", str(annotation), "--result-file", str(answers)]) == 2
    assert "has questions without an answer: a test split, which MMBench's server scores" in capsys.readouterr().err
