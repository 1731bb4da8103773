"""MMBench and CircularEval on hand-made answers, scored by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    return {"question_id": index, "round_id": turn, "prompt": "Which?", "text": text, **shown}


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
    # 1, "dog" is B, A, D, C in the four rounds, and is chosen in all.
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


KEPT = {  # index -> options, answer; "None of these" keeps its place, so that 7 has three orders
    7: (["On the shelf", "Under the table", "In the sink", "None of these"], "A"),
    1_000_007: (["In the sink", "On the shelf", "Under the table", "None of these"], "B"),
    2_000_007: (["Under the table", "In the sink", "On the shelf", "None of these"], "C"),
    8: (["Yes", "No"], "A"),
    1_000_008: (["No", "Yes"], "B"),
}


def kept_table(folder: Path) -> Path:
    lines = ["\t".join(("index", "question", "A", "B", "C", "D", "answer", "split", "image", "hint"))]
    for index, (options, answer) in KEPT.items():
        cells = [*options, *[""] * (4 - len(options))]
        lines.append("\t".join([str(index), "Which?", *cells, answer, "dev", "x", ""]))
    path = folder / "kept.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("wrong", "scored"),
    [
        ((), {"first order": 100.0, "CircularEval": 100.0}),
        ((2_000_007,), {"first order": 100.0, "CircularEval": 50.0}),
        ((7,), {"first order": 50.0, "CircularEval": 50.0}),
        ((1_000_007, 1_000_008), {"first order": 100.0, "CircularEval": 0.0}),
    ],
)
def test_the_orders_of_a_question_are_what_the_table_holds(
    tmp_path: Path, wrong: tuple[int, ...], scored: dict[str, float]
) -> None:
    rows = [row(index, "D" if index in wrong else answer, 0, options) for index, (options, answer) in KEPT.items()]
    assert run(tmp_path, kept_table(tmp_path), rows) == scored


@pytest.mark.parametrize(("last", "circular"), [("A", 100.0), ("B", 0.0)])
def test_rounds_over_a_table_that_holds_copies_must_all_be_right(tmp_path: Path, last: str, circular: float) -> None:
    """ "Yes" is A in the row and B in its copy; in the second round of each it is the other letter."""
    annotation = kept_table(tmp_path)
    lines = "".join(line for line in annotation.open() if "shelf" not in line)
    annotation.write_text(lines)
    options = {8: ["Yes", "No"], 1_000_008: ["No", "Yes"]}
    said = {(8, 0): "A", (8, 1): "B", (1_000_008, 0): "B", (1_000_008, 1): last}
    rows = [row(index, text, turn, options[index]) for (index, turn), text in said.items()]
    assert run(tmp_path, annotation, rows) == {"first order": 100.0, "CircularEval": circular}


def test_a_file_of_llavas_model_vqa_mmbench_is_scored(tmp_path: Path) -> None:
    rows = [
        {
            "question_id": index, "round_id": 0, "prompt": "Which?", "text": answer, "options": options,
            "option_char": list("ABCD"[: len(options)]), "answer_id": "Kx4", "model_id": "llava-13b", "metadata": {},
        }
        for index, (options, answer) in KEPT.items()
    ]  # fmt: skip
    assert run(tmp_path, kept_table(tmp_path), rows) == {"first order": 100.0, "CircularEval": 100.0}


def upload(path: Path, said: dict[int, str | None]) -> Path:
    """An upload as LLaVA publishes it: the table's rows with `prediction` after the options."""
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"])
    for index, text in said.items():
        options, answer = KEPT.get(index, (["x", "y"], "A"))
        cells = [*options, *[None] * (4 - len(options))]
        book.active.append([index, "Which?", *cells, text, answer, "dev"])
    book.active.cell(book.active.max_row + 2, 1).number_format = "0.00"  # Excel saves rows of formats alone
    book.save(path)
    return path


def test_an_upload_for_mmbenchs_server_is_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """7 wrong in its last order; 8 right in both, once by the option's text."""
    said = {7: "A", 1_000_007: "B.", 2_000_007: None, 8: "Yes", 1_000_008: "B"}
    flags = ["--annotation-file", str(kept_table(tmp_path)), "--json", str(tmp_path / "s.json"), "--result-file"]
    assert eval_mmbench.main([*flags, str(upload(tmp_path / "u.xlsx", said))]) == 0
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert (rows["first order"]["accuracy"], rows["CircularEval"]["accuracy"]) == (100.0, 50.0)
    assert eval_mmbench.main([*flags, str(upload(tmp_path / "u.xlsx", said | {9: "A"}))]) == 2
    assert "u.xlsx holds question '9', which the table does not have" in capsys.readouterr().err
    (tmp_path / "u.xlsx").write_text("index,prediction")
    assert eval_mmbench.main([*flags, str(tmp_path / "u.xlsx")]) == 2
    assert "u.xlsx is not an Excel file" in capsys.readouterr().err


@given(st.dictionaries(st.tuples(st.integers(0, 6), st.integers(0, 3)), st.booleans(), min_size=1))
def test_circular_eval_is_the_share_of_indices_that_are_right_in_all_their_rows(right: dict[Any, bool]) -> None:
    """Against grouping by the index modulo a million."""
    options = {"A": "red", "B": "blue"}
    questions = {base + copy * 10**6: options | {"answer": "A"} for base, copy in right}
    answers = {
        (base + copy * 10**6, 0): {"text": "A" if hit else "B", "options": ["red", "blue"], "option_char": ["A", "B"]}
        for (base, copy), hit in right.items()
    }
    groups: dict[int, list[bool]] = {}
    for (base, _), hit in right.items():
        groups.setdefault(base, []).append(hit)
    scored = eval_mmbench.score(questions, answers).rows
    best = scored.get("CircularEval", scored["first order"])
    assert best["accuracy"] == pytest.approx(100 * sum(map(all, groups.values())) / len(groups))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row(1, "B"), row(2, "A")], "1 of 3 questions have no answer, for example 3"),
        (ROUNDS[:-1], "question 3 was asked in 1 orders; CircularEval needs all 2"),
        ([*ROUNDS, ROUNDS[0]], "'1' / '0' appears twice"),
        ([row(1, "B") | {"question_id": 9}], "there is an answer to question 9, which the table does not have"),
        (
            [{"question_id": 1, "round_id": 0, "text": "A"}],
            "the answer to question 1: the row has no options, option_char",
        ),
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
