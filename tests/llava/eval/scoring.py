"""Hand-made questions and labels of benchmarks, shared by the scorers' tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llava.eval import eval_mme
from tests.llava.eval.files import write_answers, write_json, write_rows

Main = Callable[[Sequence[str]], int]


def rows_of(folder: Path, main: Main, *flags: str) -> dict[str, dict[str, float]]:
    assert main([*flags, "--result-file", str(folder / "a.jsonl"), "--json", str(folder / "s.json")]) == 0
    return json.loads((folder / "s.json").read_text())["rows"]


def labelled(folder: Path, main: Main, asked: Sequence[tuple[dict[str, Any], str]]) -> dict[str, dict[str, float]]:
    """The score of questions, each with what the model said."""
    questions = write_rows(folder / "q.jsonl", [{"question_id": i} | row for i, (row, _) in enumerate(asked)])
    prompts = {str(i): row["text"] for i, (row, _) in enumerate(asked)}
    write_answers(folder / "a.jsonl", {str(i): text for i, (_, text) in enumerate(asked)}, prompts)
    return rows_of(folder, main, "--question-file", str(questions))


COLOURS = "What colour is it?\n(A) red\n(B) blue\nAnswer with the option's letter from the given choices directly."


def cv(source: str, task: str, answer: str) -> dict[str, str]:
    return {"source": source, "task": task, "answer": answer, "text": "How many?\n(A) 0\n(B) 3"}


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


SUFFIX = "\nAnswer the question using a single word or phrase."

TASKS = (*eval_mme.PERCEPTION, *eval_mme.COGNITION)


def gqa_question(answer: str, structural: str, semantic: str) -> dict[str, Any]:
    return {"answer": answer, "types": {"structural": structural, "semantic": semantic}}
