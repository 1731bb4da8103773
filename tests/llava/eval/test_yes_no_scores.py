"""POPE and MME on hand-made answers, scored by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.eval import eval_mme, eval_pope
from tests.llava.eval.files import write_answers, write_rows

SUFFIX = "\nAnswer the question using a single word or phrase."


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
    write_answers(folder / "a.jsonl", texts)
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
    write_answers(folder / "a.jsonl", {100: "Yes", 99: "No", 98: "No"})
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


TASKS = (*eval_mme.PERCEPTION, *eval_mme.COGNITION)


def mme_files(folder: Path, said: dict[str, list[str]], tasks: tuple[str, ...] = TASKS) -> list[str]:
    """Two images for each task, each with a question to be answered Yes and one No; task -> four answers."""
    answers = []
    for number, task in enumerate(tasks):
        inner = folder / "data" / task / ("questions_answers_YN" if number % 2 else "")
        inner.mkdir(parents=True, exist_ok=True)
        for image in range(2):
            lines = [
                f"Is it {image}?  Please answer yes or no.\tYes",
                f"Is it not {image}? Please answer yes or no.\tNo",
            ]
            (inner / f"{image}.txt").write_text("\n".join(lines) + "\n")
            for turn, line in enumerate(lines):
                text = said.get(task, ["Yes", "No", "yes.", "no"])[2 * image + turn]
                prompt = " ".join(line.split("\t")[0].split()) + SUFFIX
                answers.append({"question_id": f"{task}/{image}.png", "prompt": prompt, "text": text})
    write_rows(folder / "a.jsonl", answers)
    return ["--data-dir", str(folder / "data"), "--result-file", str(folder / "a.jsonl")]


def mme_rows(folder: Path, **said: Any) -> dict[str, dict[str, float]]:
    assert eval_mme.main([*mme_files(folder, said), "--json", str(folder / "s.json")]) == 0
    return json.loads((folder / "s.json").read_text())["rows"]


def test_mme_by_hand(tmp_path: Path) -> None:
    """All right: 200 a task. Count: one of four wrong: acc 75, acc+ 50. OCR: an answer of neither kind is wrong: 75 and
    50 again. Text translation: "yes" to all: acc 50, acc+ 0. Sums: 8 * 200 + 2 * 125 and 3 * 200 + 50."""
    rows = mme_rows(
        tmp_path, count=["Yes", "No", "No", "No"], OCR=["Yes", "no", "It is", "no"], text_translation=["yes"] * 4
    )
    assert rows["existence"] == {"score": 200.0, "acc": 100.0, "acc+": 100.0, "images": 2}
    assert rows["count"] == rows["OCR"] == {"score": 125.0, "acc": 75.0, "acc+": 50.0, "images": 2}
    assert rows["text_translation"] == {"score": 50.0, "acc": 50.0, "acc+": 0.0, "images": 2}
    assert (rows["perception"], rows["cognition"]) == ({"score": 1850.0}, {"score": 650.0})


def test_mme_is_not_summed_over_a_part_of_its_tasks_or_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert eval_mme.main(mme_files(tmp_path, {}, TASKS[:-1])) == 2
    assert "there are no questions of code_reasoning" in capsys.readouterr().err
    flags = mme_files(tmp_path, {})
    (tmp_path / "data" / "existence" / "0.txt").write_text("Is it 0? Please answer yes or no.\tYes\n")
    assert eval_mme.main(flags) == 2
    assert "image '0' has 1 questions; MME asks two about each" in capsys.readouterr().err
    (tmp_path / "data" / "existence" / "0.txt").write_text("Is it 0?\tperhaps\n")
    assert eval_mme.main(flags) == 2
    assert "0.txt:1: the answer is 'perhaps'; it must be Yes or No" in capsys.readouterr().err


def test_an_answer_to_mme_that_is_missing_or_there_twice_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = mme_files(tmp_path, {})
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    (tmp_path / "a.jsonl").write_text("\n".join(lines[1:]))
    assert eval_mme.main(flags) == 2
    assert (
        "lacks the answers to 1 of 56 questions, for example 'existence' / '0' / 'Is it 0?'" in capsys.readouterr().err
    )
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, lines[0]]))
    assert eval_mme.main(flags) == 2
    assert "appears twice" in capsys.readouterr().err


def test_a_question_file_is_not_scored_as_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = pope_files(tmp_path, {"random": [("yes", "Yes")], "popular": [("no", "No")], "adversarial": [("no", "No")]})
    flags[flags.index("--result-file") + 1] = str(tmp_path / "q.jsonl")
    assert eval_pope.main(flags) == 2
    assert f"{tmp_path / 'q.jsonl'}:1 is a question, not an answer; name the answers with" in capsys.readouterr().err
