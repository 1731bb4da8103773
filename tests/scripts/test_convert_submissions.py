"""Submission files are what the benchmarks' servers and scripts take, complete or not written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import (
    convert_gqa_for_eval,
    convert_mmbench_for_submission,
    convert_mmvet_for_eval,
    convert_seed_for_submission,
    convert_vizwiz_for_submission,
    convert_vqav2_for_submission,
)
from tests.llava.eval.files import write_answers, write_rows
from tests.llava.eval.scoring import seed_files
from tests.llava.eval.test_eval_mmbench import ROUNDS, row, table


def test_vqav2_answers_every_question_of_the_test_set(tmp_path: Path) -> None:
    """Questions outside the split are empty; answers are normalised; ids stay the numbers they are."""
    write_rows(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", [{"question_id": name} for name in (3, 1, 2)])
    write_rows(tmp_path / "split.jsonl", [{"question_id": name} for name in (1, 3)])
    write_answers(tmp_path / "answers" / "split" / "run" / "merge.jsonl", {3: "The Two.", 1: "red"})
    flags = ["--dir", str(tmp_path), "--split", "split", "--ckpt", "run"]
    assert convert_vqav2_for_submission.main(flags) == 0
    assert json.loads((tmp_path / "answers_upload" / "split" / "run.json").read_text()) == [
        {"question_id": 3, "answer": "2"},
        {"question_id": 1, "answer": "red"},
        {"question_id": 2, "answer": ""},
    ]


def test_a_split_of_vqav2_must_be_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", [{"question_id": 1}])
    write_rows(tmp_path / "split.jsonl", [{"question_id": 1}, {"question_id": 2}])
    answers = tmp_path / "answers" / "split" / "run" / "merge.jsonl"
    flags = ["--dir", str(tmp_path), "--split", "split", "--ckpt", "run"]
    write_answers(answers, {1: "a"})
    assert convert_vqav2_for_submission.main(flags) == 2
    assert "lacks the answers to 1 of 2 questions, for example '2'" in capsys.readouterr().err
    write_answers(answers, {1: "a", 2: "b"})
    assert convert_vqav2_for_submission.main(flags) == 2
    assert "answers question '2', which llava_vqav2_mscoco_test2015.jsonl does not have" in capsys.readouterr().err
    assert not (tmp_path / "answers_upload").exists()


def test_vizwiz_names_pictures(tmp_path: Path) -> None:
    questions = write_rows(tmp_path / "q.jsonl", [{"question_id": i, "image": f"{i}.jpg"} for i in (0, 1)])
    answers = write_rows(
        tmp_path / "a.jsonl", [{"question_id": 1.0, "text": "Unanswerable"}, {"question_id": 0.0, "text": "A cat."}]
    )  # as pandas has ids in a table with gaps
    out = tmp_path / "up" / "run.json"
    flags = ["--annotation-file", questions, "--result-file", answers, "--result-upload-file", out]
    assert convert_vizwiz_for_submission.main([str(flag) for flag in flags]) == 0
    assert json.loads(out.read_text()) == [
        {"image": "0.jpg", "answer": "cat"},
        {"image": "1.jpg", "answer": "unanswerable"},
    ]


def test_gqas_predictions_are_lower_case_without_a_full_stop(tmp_path: Path) -> None:
    answers = write_answers(tmp_path / "a.jsonl", {"07": "Yes.", "8": "the left"})
    out = tmp_path / "p.json"
    assert convert_gqa_for_eval.main(["--src", str(answers), "--dst", str(out)]) == 0
    assert json.loads(out.read_text()) == [
        {"questionId": "07", "prediction": "yes"},
        {"questionId": "8", "prediction": "the left"},
    ]


def test_seed_bench_is_scored_and_its_letters_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = write_answers(tmp_path / "a.jsonl", {"v3": "hm", "1_0": "a", "2": "Four."})
    out = tmp_path / "up" / "run.jsonl"
    flags = [*seed_files(tmp_path), "--result-file", str(answers), "--result-upload-file", str(out)]
    assert convert_seed_for_submission.main(flags) == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {"question_id": "1_0", "prediction": "A"},
        {"question_id": "2", "prediction": "D"},
        {"question_id": "v3", "prediction": "hm"},
    ]
    assert capsys.readouterr().out.startswith("SEED-Bench")


def mmbench_upload(tmp_path: Path, said: str) -> Path:
    """The workbook that MMBench's converter writes where question 1 was answered with `said`."""
    annotation = table(tmp_path)
    write_rows(tmp_path / "answers" / "run.jsonl", [*ROUNDS[1:], row(1, said)])
    flags = ["--annotation-file", annotation, "--result-dir", tmp_path / "answers", "--upload-dir", tmp_path / "up"]
    assert convert_mmbench_for_submission.main([*map(str, flags), "--experiment", "run"]) == 0
    return tmp_path / "up" / "run.xlsx"


def test_mmbenchs_table_holds_what_was_said_to_the_first_order(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    rows = list(openpyxl.load_workbook(mmbench_upload(tmp_path, "B. dog")).active.values)
    assert rows == [
        ("index", "question", "A", "B", "C", "D", "answer", "prediction"),
        (1, "Which?", "cat", "dog", "cow", "ant", "B", "B. dog"),
        (2, "Which?", "red", "blue", None, None, "A", "A"),
        (3, "Which?", "one", "two", None, None, "B", "A"),
    ]


def test_mmbenchs_index_must_be_a_whole_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotation = table(tmp_path)
    annotation.write_text(annotation.read_text().replace("\n2\t", "\n2.0\t"))
    write_rows(tmp_path / "answers" / "run.jsonl", ROUNDS)
    flags = ["--annotation-file", annotation, "--result-dir", tmp_path / "answers", "--upload-dir", tmp_path / "up"]
    assert convert_mmbench_for_submission.main([*map(str, flags), "--experiment", "run"]) == 2
    assert f"{annotation}: index is '2.0'; it must be a whole number" in capsys.readouterr().err
    assert not (tmp_path / "up").exists()


def test_an_answer_that_excel_would_not_take_as_text_is_written_as_text(tmp_path: Path) -> None:
    """A formula and an error's name would reach the server as such, and a control character ends openpyxl."""
    openpyxl = pytest.importorskip("openpyxl")
    (tmp_path / "error").mkdir()
    error = openpyxl.load_workbook(mmbench_upload(tmp_path / "error", "#N/A"), data_only=True).active["H2"]
    assert (error.value, error.data_type) == ("#N/A", "s")
    sheet = openpyxl.load_workbook(mmbench_upload(tmp_path, "=B\x0b"), data_only=True).active
    assert sheet["H2"].value == "=B"


@pytest.mark.parametrize(
    ("convert", "flags"),
    [
        (convert_gqa_for_eval, ["--src", "{}", "--dst", "out"]),
        (convert_mmvet_for_eval, ["--src", "{}", "--dst", "out"]),
        (
            convert_vizwiz_for_submission,
            ["--annotation-file", "{}", "--result-file", "{}", "--result-upload-file", "out"],
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_questions_are_not_submitted_as_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], convert: Any, flags: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    questions = write_rows(tmp_path / "q.jsonl", [{"question_id": "1", "image": "a.jpg", "text": "Is it?"}])
    assert convert.main([flag.format(questions) for flag in flags]) == 2
    assert "q.jsonl:1 is a question, not an answer; give the file of answers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
