"""POPE on hand-made answers, scored by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.eval import eval_pope
from tests.llava.eval.files import write_answers, write_rows
from tests.llava.eval.scoring import SUFFIX


def pope_files(folder: Path, asked: dict[str, list[tuple[str, str]]], drop: int = 0) -> list[str]:
    """category -> (label, what the model said) of each question; the flags of the command."""
    questions, texts = [], {}
    for category, pairs in asked.items():
        rows = [
            {"question_id": i + 1, "image": f"{i}.jpg", "text": f"Is there a dog {i}?", "label": label}
            for i, (label, _) in enumerate(pairs)
        ]
        write_rows(folder / "coco" / f"coco_pope_{category}.json", rows)
        for row, (_, text) in zip(rows, pairs, strict=True):
            name = len(questions)
            questions.append(
                {"question_id": name, "image": row["image"], "text": row["text"] + SUFFIX, "category": category}
            )
            texts[name] = text
    write_rows(folder / "q.jsonl", questions[: len(questions) - drop])
    write_answers(folder / "a.jsonl", texts, {row["question_id"]: row["text"] for row in questions})
    names = ("--annotation-dir", "coco"), ("--question-file", "q.jsonl"), ("--result-file", "a.jsonl")
    return [part for flag, name in names for part in (flag, str(folder / name))]


def test_pope_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random: a hit, a miss, two correct rejections and a false alarm: accuracy 3/5, precision 1/2, recall 1/2, F1 1/2,
    yes 2/5. Adversarial, all "No": accuracy 1/2; nothing is said to be there, so precision, recall and F1 are 0."""
    asked = {
        "random": [("yes", "Yes"), ("yes", "no"), ("no", "No, there is not."), ("no", "A dog."), ("no", "no")],
        "adversarial": [("yes", "No"), ("no", "No.")],
    }
    flags = pope_files(tmp_path, asked)
    assert eval_pope.main([*flags, "--json", str(tmp_path / "score.json")]) == 0
    rows = json.loads((tmp_path / "score.json").read_text())["rows"]
    random = {"accuracy": 60.0, "precision": 50.0, "recall": 50.0, "F1": 50.0, "yes": 40.0, "questions": 5}
    adversarial = {"accuracy": 50.0, "precision": 0.0, "recall": 0.0, "F1": 0.0, "yes": 0.0, "questions": 2}
    mean = {"accuracy": 55.0, "precision": 25.0, "recall": 25.0, "F1": 25.0, "yes": 20.0, "questions": 7}
    assert rows == {"adversarial": adversarial, "random": random, "mean": mean}
    assert "mean" in capsys.readouterr().out


def test_popes_labels_and_questions_must_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"popular": [("yes", "Yes"), ("no", "no")]}
    assert eval_pope.main(pope_files(tmp_path, asked, drop=1)) == 2
    assert "lacks 1 of the 2 popular questions, for example 'Is there a dog 1?' about 1.jpg" in capsys.readouterr().err
    assert eval_pope.main(pope_files(tmp_path, {"popular": [("maybe", "Yes")]})) == 2
    assert "label is 'maybe'; it must be 'yes' or 'no'" in capsys.readouterr().err


LABELS = [
    {"question_id": 1, "image": "a.jpg", "text": "Is there an apple in the image?", "label": "yes"},
    {"question_id": 2, "image": "a.jpg", "text": "Is there a traffic light in the image?", "label": "no"},
    {"question_id": 3, "image": "b.jpg", "text": "Is there a traffic light in the image?", "label": "yes"},
]

ASKED = ("Is there an apple in the imange?", "Is there a  traffic light in the imange?", LABELS[2]["text"])

NAMES = ("--annotation-dir", "coco"), ("--question-file", "q.jsonl"), ("--result-file", "a.jsonl")


def differing_files(folder: Path, asked: tuple[str, ...] = ASKED, labels: list[dict[str, Any]] = LABELS) -> list[str]:
    """Labels as POPE has them today, questions as LLaVA has them, in another order and with other ids."""
    write_rows(folder / "coco" / "coco_pope_adversarial.json", labels)
    rows = [
        {"question_id": 100 - i, "image": label["image"], "text": text + SUFFIX, "category": "adversarial"}
        for i, (text, label) in enumerate(zip(asked, LABELS, strict=True))
    ]
    write_rows(folder / "q.jsonl", rows[::-1])
    write_answers(
        folder / "a.jsonl", {100: "Yes", 99: "No", 98: "No"}, {row["question_id"]: row["text"] for row in rows}
    )
    return [part for flag, name in NAMES for part in (flag, str(folder / name))]


def test_popes_questions_find_their_labels_by_image_and_object(tmp_path: Path) -> None:
    """Apple and the first traffic light right, the second missed: 2 of 3, one hit of two."""
    assert eval_pope.main([*differing_files(tmp_path), "--json", str(tmp_path / "s.json")]) == 0
    row = json.loads((tmp_path / "s.json").read_text())["rows"]["adversarial"]
    assert (row["accuracy"], row["precision"], row["recall"]) == (pytest.approx(200 / 3), 100.0, 50.0)


OTHER = ("Is there a banana in the image?", *ASKED[1:])


@pytest.mark.parametrize(
    ("asked", "labels", "words"),
    [
        (
            OTHER,
            LABELS,
            "q.jsonl lacks 1 of the 3 adversarial questions, for example 'Is there an apple in the image?'",
        ),
        (ASKED, LABELS[:2], "coco lacks the labels of 1 of the 3 adversarial questions, for example"),
    ],
)
def test_label_files_of_another_split_are_refused_before_and_after_answering_with_the_commit_that_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: Any, labels: Any, words: str
) -> None:
    flags = differing_files(tmp_path, asked, labels)
    for more in (flags, [*flags[:4], "--check", flags[3]]):
        assert eval_pope.main(more) == 2
        error = capsys.readouterr().err
        assert words in error
        assert "https://github.com/AoiDragon/POPE/tree/e3e3926/output/coco" in error


def test_every_category_of_popes_questions_needs_its_label_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = pope_files(tmp_path, {"random": [("no", "no")], "popular": [("yes", "yes")]})
    (tmp_path / "coco" / "coco_pope_popular.json").unlink()
    assert eval_pope.main(flags) == 2
    assert "lacks the labels of 1 of the 1 popular questions" in capsys.readouterr().err


def test_a_question_file_is_not_scored_as_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = pope_files(tmp_path, {"random": [("yes", "Yes")], "popular": [("no", "No")], "adversarial": [("no", "No")]})
    flags[flags.index("--result-file") + 1] = str(tmp_path / "q.jsonl")
    assert eval_pope.main(flags) == 2
    assert f"{tmp_path / 'q.jsonl'}:1 is a question, not an answer; give the file of answers" in capsys.readouterr().err
