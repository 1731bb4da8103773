"""Multiple-choice benchmarks, V* Bench to ScienceQA, on hand-made answers, scored by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llava.eval import eval_cvbench, eval_realworldqa, eval_science_qa, eval_seed, eval_vstar
from tests.llava.eval.files import write_answers, write_json, write_rows

Main = Callable[[Sequence[str]], int]


def rows_of(folder: Path, main: Main, *flags: str) -> dict[str, dict[str, float]]:
    assert main([*flags, "--result-file", str(folder / "a.jsonl"), "--json", str(folder / "s.json")]) == 0
    return json.loads((folder / "s.json").read_text())["rows"]


def labelled(folder: Path, main: Main, asked: Sequence[tuple[dict[str, Any], str]]) -> dict[str, dict[str, float]]:
    """The score of questions, each with what the model said."""
    questions = write_rows(folder / "q.jsonl", [{"question_id": i} | row for i, (row, _) in enumerate(asked)])
    write_answers(folder / "a.jsonl", {str(i): text for i, (_, text) in enumerate(asked)})
    return rows_of(folder, main, "--question-file", str(questions))


COLOURS = "What colour is it?\n(A) red\n(B) blue\nAnswer with the option's letter from the given choices directly."


def test_vstar_by_hand(tmp_path: Path) -> None:
    """Attributes: "B" and "The answer is (A)." right, "purple" unparsed: 2 of 3. Relations: option A's text, but B is
    right: 0 of 1. Overall counts questions, 2 of 4, where the mean over categories would be 33.3."""
    attributes, relations = {"category": "direct_attributes"}, {"category": "relative_position"}
    rows = labelled(
        tmp_path,
        eval_vstar.main,
        [
            ({"text": COLOURS, "label": "B", **attributes}, "B"),
            ({"text": COLOURS, "label": "A", **attributes}, "The answer is (A)."),
            ({"text": COLOURS, "label": "A", **attributes}, "purple"),
            ({"text": COLOURS, "label": "B", **relations}, "red"),
        ],
    )
    assert rows == {
        "attributes": {"accuracy": pytest.approx(200 / 3), "questions": 3, "unparsed": 1},
        "relations": {"accuracy": 0.0, "questions": 1, "unparsed": 0},
        "overall": {"accuracy": 50.0, "questions": 4, "unparsed": 1},
    }


def test_vstar_has_two_categories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = write_rows(
        tmp_path / "q.jsonl", [{"question_id": 0, "text": COLOURS, "label": "A", "category": "colours"}]
    )
    answers = write_answers(tmp_path / "a.jsonl", {0: "A"})
    flags = ["--question-file", str(questions), "--result-file", str(answers)]
    assert eval_vstar.main(flags) == 2
    assert "category is 'colours'; V* Bench has direct_attributes and relative_position" in capsys.readouterr().err
    write_rows(questions, [{"question_id": 0, "text": COLOURS, "category": "direct_attributes"}])
    assert eval_vstar.main(flags) == 2
    assert "q.jsonl:1: the row has no label" in capsys.readouterr().err


def cv(source: str, task: str, answer: str) -> dict[str, str]:
    return {"source": source, "task": task, "answer": answer, "text": "How many?\n(A) 0\n(B) 3"}


def test_cvbench_by_hand(tmp_path: Path) -> None:
    """ADE20K 3 of 4, COCO 0 of 1, Omni3D 1 of 1: 2D is their mean, 37.5, though 3 of 5 questions are right; 3D is 100,
    the score the mean of the two, 68.75. "3" is option B's text."""
    rows = labelled(
        tmp_path,
        eval_cvbench.main,
        [
            (cv("ADE20K", "Count", "(B)"), "3"),
            (cv("ADE20K", "Count", "(A)"), "(A) 0"),
            (cv("ADE20K", "Relation", "(A)"), "A"),
            (cv("ADE20K", "Relation", "(A)"), "B"),
            (cv("COCO", "Count", "(A)"), "neither"),
            (cv("Omni3D", "Depth", "(B)"), "b"),
        ],
    )
    measured = {name: row["accuracy"] for name, row in rows.items()}
    assert {name: measured[name] for name in ("overall", "2D", "3D")} == {"overall": 68.75, "2D": 37.5, "3D": 100.0}
    assert [measured[name] for name in ("ADE20K", "COCO", "Omni3D")] == [75.0, 0.0, 100.0]
    assert [measured[name] for name in ("Count", "Relation", "Depth")] == [pytest.approx(200 / 3), 50.0, 100.0]
    assert rows["all questions"] == {"accuracy": pytest.approx(400 / 6), "questions": 6, "unparsed": 1}


def test_a_part_of_cvbench_has_no_overall_score(tmp_path: Path) -> None:
    rows = labelled(
        tmp_path, eval_cvbench.main, [(cv("Omni3D", "Depth", "(B)"), "B"), (cv("COCO", "Count", "(A)"), "A")]
    )
    assert "3D" in rows and not {"2D", "overall"} & set(rows)


def test_realworldqa_by_hand(tmp_path: Path) -> None:
    """Choice: "A." right, the text of B wrong. Open: "Two." is 2 and "the north" is north, "left side" is not left.
    3 of 5; 1 of 2 and 2 of 3."""
    choice = "Where?\n\nA. Left\nB. Right\nPlease answer directly with only the letter of the correct option."
    rows = labelled(
        tmp_path,
        eval_realworldqa.main,
        [
            ({"text": choice, "answer": "A"}, "A."),
            ({"text": choice, "answer": "A"}, "right"),
            ({"text": "How many?", "answer": "2"}, "Two."),
            ({"text": "Which way?", "answer": "North"}, "the north"),
            ({"text": "Which side?", "answer": "left"}, "left side"),
        ],
    )
    assert rows == {
        "all": {"accuracy": 60.0, "questions": 5},
        "multiple choice": {"accuracy": 50.0, "questions": 2},
        "open": {"accuracy": pytest.approx(200 / 3), "questions": 3},
    }


def seed_question(name: str, answer: str, kind: str, question_type: int) -> dict[str, Any]:
    choices = {f"choice_{letter}": text for letter, text in zip("abcd", ("one", "two", "three", "four"), strict=True)}
    return {"question_id": name, "answer": answer, "data_type": kind, "question_type_id": question_type} | choices


def seed_files(folder: Path) -> list[str]:
    questions = [
        seed_question("1_0", "A", "image", 1),
        seed_question("2", "D", "image", 2),
        seed_question("v3", "B", "video", 10),
    ]
    types = {"Scene Understanding": 1, "Instance Identity": 2, "Action Recognition": 10}
    return [
        "--annotation-file",
        str(write_json(folder / "SEED-Bench.json", {"questions": questions, "question_type": types})),
    ]


def test_seed_bench_by_hand(tmp_path: Path) -> None:
    """ "a" is right, "Four." is D's text and right, "B or C" is unparsed: 2 of 3; images 2 of 2, videos 0 of 1."""
    flags = seed_files(tmp_path)
    write_answers(tmp_path / "a.jsonl", {"v3": "B or C", "1_0": "a", "2": "Four."})
    one, none = {"accuracy": 100.0, "questions": 1}, {"accuracy": 0.0, "questions": 1}
    assert rows_of(tmp_path, eval_seed.main, *flags) == {
        "all": {"accuracy": pytest.approx(200 / 3), "questions": 3, "unparsed": 1},
        "image": {"accuracy": 100.0, "questions": 2},
        "video": none,
        "Scene Understanding": one,
        "Instance Identity": one,
        "Action Recognition": none,
    }


def test_seed_benchs_images_need_no_answers_about_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = seed_files(tmp_path)
    write_answers(tmp_path / "a.jsonl", {"1_0": "A", "2": "B"})
    assert rows_of(tmp_path, eval_seed.main, *flags, "--only", "image")["all"]["accuracy"] == 50.0
    assert eval_seed.main([*flags, "--result-file", str(tmp_path / "a.jsonl")]) == 2
    assert "lacks the answers to 1 of 3 questions, for example 'v3'" in capsys.readouterr().err


def problem(subject: str, grade: int, answer: int, image: str | None = None, hint: str = "") -> dict[str, Any]:
    own = {"subject": f"{subject} science", "grade": f"grade{grade}", "answer": answer, "image": image, "hint": hint}
    return {"choices": ["iron", "gold", "wood"]} | own


def science_files(folder: Path) -> list[str]:
    problems = {
        "1": problem("natural", 2, 0, image="image.png", hint="Look."),
        "2": problem("natural", 7, 1),
        "3": problem("social", 6, 2, image="image.png"),
        "4": problem("language", 12, 0, hint="Read."),
        "5": problem("social", 1, 0),
    }
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", {"test": ["1", "2", "3", "4"], "train": ["5"], "val": []})
    return ["--base-dir", str(folder)]


def test_science_qa_by_hand(tmp_path: Path) -> None:
    """1 "A" right; 2 "B. gold" right; 3 "iron" wrong; 4 "The answer is C." wrong. All 2/4, IMG 1/2 (1, 3), TXT 1/2
    (1, 4), NO 1/1 (2), NAT 2/2, SOC 0/1, LAN 0/1, G1-6 1/2 (1, 3), G7-12 1/2 (2, 4)."""
    flags = science_files(tmp_path)
    write_answers(tmp_path / "a.jsonl", {"1": "A", "2": "B. gold", "3": "iron", "4": "The answer is C.", "5": "A"})
    out = [f"--output-{name}={tmp_path / f'{name}.json'}" for name in ("file", "result")]
    rows = rows_of(tmp_path, eval_science_qa.main, *flags, *out)
    share = {name: (row["accuracy"], row["questions"]) for name, row in rows.items()}
    assert share == {
        "all": (50.0, 4),
        "IMG": (50.0, 2),
        "TXT": (50.0, 2),
        "NO": (100.0, 1),
        "NAT": (100.0, 2),
        "SOC": (0.0, 1),
        "LAN": (0.0, 1),
        "G1-6": (50.0, 2),
        "G7-12": (50.0, 2),
    }
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["acc"], result["correct"], result["count"]) == (50.0, 2, 4)
    assert result["results"] == {"1": 0, "2": 1, "3": 0, "4": 2}
    kinds = json.loads((tmp_path / "file.json").read_text())
    assert [row["question_id"] for row in kinds["incorrect"]] == ["3", "4"]


def test_an_answer_to_science_qa_that_names_no_choice_is_wrong_and_counted(tmp_path: Path) -> None:
    flags = science_files(tmp_path)
    write_answers(tmp_path / "a.jsonl", {"1": "E", "2": "", "3": "wood", "4": "A or B"})
    assert rows_of(tmp_path, eval_science_qa.main, *flags)["all"] == {"accuracy": 25.0, "questions": 4, "unparsed": 3}


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("val", "split 'val' of .* is empty"),
        ("dev", "has no split 'dev'; it has test, train, val"),
        ("train", "lacks the answers to 1 of 1 questions, for example '5'"),
    ],
)
def test_a_split_of_science_qa_must_be_there(tmp_path: Path, split: str, words: str) -> None:
    flags = science_files(tmp_path)
    answers = write_answers(tmp_path / "a.jsonl", {"1": "A"})
    parsed = type("Args", (), {"base_dir": Path(flags[1]), "split": split, "result_file": answers, "options": "ABCDE"})
    with pytest.raises(ValueError, match=words):
        eval_science_qa.measure(parsed)
