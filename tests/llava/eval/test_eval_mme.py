"""MME on hand-made answers, scored by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.eval import (
    eval_mme,
)
from tests.llava.eval.files import write_rows
from tests.llava.eval.scoring import SUFFIX, TASKS


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


def test_mme_copied_by_a_mac_and_answered_on_windows_is_scored(tmp_path: Path) -> None:
    flags = mme_files(tmp_path, {})
    (tmp_path / "data" / "existence" / "._0.txt").write_bytes(b"\x00\x05\x16\x07Mac\xff")
    answers = tmp_path / "a.jsonl"
    answers.write_text(answers.read_text().replace("existence/", "existence\\\\"))
    assert eval_mme.main([*flags, "--json", str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text())["rows"]["existence"]["score"] == 200.0


def test_mme_is_not_summed_over_a_part_of_its_tasks_or_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert eval_mme.main(mme_files(tmp_path, {}, TASKS[:-1])) == 2
    assert "there are no questions of code_reasoning" in capsys.readouterr().err
    flags = mme_files(tmp_path, {})
    (tmp_path / "data" / "existence" / "0.txt").write_text("Is it 0? Please answer yes or no.\tYes\n")
    assert eval_mme.main(flags) == 2
    words = "lacks labels of 1 of the 56 questions in "
    assert words in (said := capsys.readouterr().err) and "'Is it not 0?'; there is no score over a part" in said
    answers = (tmp_path / "a.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_text(
        "".join(line for line in answers if "existence/0" not in line or "not" not in line)
    )
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
