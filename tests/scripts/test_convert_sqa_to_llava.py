"""ScienceQA's problems become the conversations and lines that LLaVA's converter writes, by hand-made files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import convert_mmvet_for_eval, convert_sqa_to_llava
from tests.llava.eval.files import write_answers, write_json, write_rows

PROBLEMS = {
    "7": {
        "question": "Which is  red?", "choices": ["sky", "rose"], "answer": 1, "hint": "Look.", "image": "image.png",
        "lecture": "Colours\ndiffer.", "solution": "Roses are red.",
    },
    "9": {
        "question": "How many?", "choices": ["1", "2", "3"], "answer": 0, "hint": "", "image": None,
        "lecture": "", "solution": "",
    },
}  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_json(tmp_path / "problems.json", PROBLEMS)
    write_json(tmp_path / "pid_splits.json", {"train": ["9", "7"], "test": ["7"]})
    return tmp_path


def test_conversations_hold_question_picture_and_reasoned_answer(base: Path) -> None:
    """The default format, QCM-LEA; the picture goes after the question; a lecture keeps its line feeds."""
    assert convert_sqa_to_llava.main(["convert_to_llava", "--base-dir", str(base), "--split", "train"]) == 0
    assert json.loads((base / "llava_train_QCM-LEA.json").read_text()) == [
        {
            "id": "9",
            "conversations": [
                {"from": "human", "value": "How many?\nContext: N/A\nOptions: (A) 1 (B) 2 (C) 3"},
                {"from": "gpt", "value": "The answer is A."},
            ],
        },
        {
            "id": "7",
            "image": "7/image.png",
            "conversations": [
                {"from": "human", "value": "Which is red?\nContext: Look.\nOptions: (A) sky (B) rose\n<image>"},
                {"from": "gpt", "value": "Colours\ndiffer. Roses are red. The answer is B."},
            ],
        },
    ]


def test_lines_hold_instruction_and_output(base: Path) -> None:
    assert convert_sqa_to_llava.main(["convert_to_jsonl", "--base-dir", str(base), "--split", "train"]) == 0
    lines = (base / "scienceqa_train_QCM-LEPA.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": "9", "instruction": "How many?\nContext: N/A\nOptions: (A) 1 (B) 2 (C) 3", "output": "###\nANSWER: A."},
        {
            "id": "7",
            "image": "7/image.png",
            "instruction": "Which is red?\nContext: Look.\nOptions: (A) sky (B) rose\n<image>",
            "output": "LECTURE: Colours\ndiffer.\nSOLUTION: Roses are red.\n###\nANSWER: B.",
        },
    ]


FORMATS = {
    "CQM-A": ("Context: Look.\nQuestion: Which is red?\nOptions: (A) sky (B) rose", "The answer is B."),
    "QCML-A": (
        "Which is red?\nContext: Look.\nOptions: (A) sky (B) rose\nBECAUSE: Colours\ndiffer.", "The answer is B.",
    ),
    "QCLEM-A": (
        "Which is red?\nContext: Look.\nBECAUSE: Colours\ndiffer. Roses are red.\nOptions: (A) sky (B) rose",
        "The answer is B.",
    ),
    "QCM-ALE": (
        "Which is red?\nContext: Look.\nOptions: (A) sky (B) rose",
        "The answer is B. BECAUSE: Colours\ndiffer. Roses are red.",
    ),
    "QCM-EA": ("Which is red?\nContext: Look.\nOptions: (A) sky (B) rose", "Roses are red. The answer is B."),
}  # fmt: skip


@pytest.mark.parametrize(("prompt_format", "texts"), FORMATS.items())
def test_a_format_says_what_is_asked_and_answered(prompt_format: str, texts: tuple[str, str]) -> None:
    assert convert_sqa_to_llava.question_and_answer(PROBLEMS["7"], prompt_format) == texts


def test_a_missing_reason_is_not_announced() -> None:
    question, answer = convert_sqa_to_llava.question_and_answer(PROBLEMS["9"], "QCML-AE")
    assert (question.split("\n")[-1], answer) == ("Options: (A) 1 (B) 2 (C) 3", "The answer is A.")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--split", "dev"], "has no split 'dev'; it has train, test"),
        (["--split", "train", "--prompt-format", "QCM"], "--prompt-format is 'QCM'; allowed are"),
    ],
)
def test_what_is_not_there_is_one_line(base: Path, flags: list[str], words: str, capsys: Any) -> None:
    assert convert_sqa_to_llava.main(["convert_to_llava", "--base-dir", str(base), *flags]) == 2
    assert words in (line := capsys.readouterr().err)
    assert line.count("\n") == 1


def test_mm_vet_gets_an_answer_by_its_own_name_of_the_question(tmp_path: Path) -> None:
    answers = write_answers(tmp_path / "a.jsonl", {0: "A cat.", 17: "é", "v1_18": "2"})
    out = tmp_path / "results" / "run.json"
    assert convert_mmvet_for_eval.main(["--src", str(answers), "--dst", str(out)]) == 0
    assert json.loads(out.read_text(encoding="utf-8")) == {"v1_0": "A cat.", "v1_17": "é", "v1_18": "2"}
    before = answers.read_bytes()
    assert convert_mmvet_for_eval.main(["--src", str(answers), "--dst", str(answers)]) == 2
    assert answers.read_bytes() == before


@pytest.mark.parametrize(
    ("said", "asked", "words"),
    [
        ({0: "A cat.", "v1_0": "2"}, (0,), "answers v1_0 twice, as 'v1_0' and as '0'"),
        ({0: "A cat."}, (0, 1), "lacks the answers to 1 of 2 questions, for example 'v1_1'"),
        ({0: "A cat.", 2: "Two."}, (0,), "answers question 'v1_2', which"),
    ],
)
def test_mm_vet_gets_one_answer_to_each_question(
    tmp_path: Path, capsys: Any, said: dict[Any, str], asked: tuple[int, ...], words: str
) -> None:
    answers = write_answers(tmp_path / "a.jsonl", said)
    questions = write_rows(tmp_path / "q.jsonl", [{"question_id": name, "text": "?"} for name in asked])
    flags = ["--src", str(answers), "--dst", str(tmp_path / "out.json"), "--question-file", str(questions)]
    assert convert_mmvet_for_eval.main(flags) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_mm_vet_gets_no_answers_to_another_benchmark(tmp_path: Path, capsys: Any) -> None:
    """Many benchmarks number their questions from 0."""
    answers = write_answers(tmp_path / "a.jsonl", {0: "yes"}, {0: "Is there a dog?"})
    questions = write_rows(tmp_path / "q.jsonl", [{"question_id": "v1_0", "text": "What is x?"}])
    flags = ["--src", str(answers), "--dst", str(tmp_path / "out.json"), "--question-file", str(questions)]
    assert convert_mmvet_for_eval.main(flags) == 2
    assert "the answer to 'v1_0' is to another question: its prompt is 'Is there a dog?'" in capsys.readouterr().err
    assert convert_mmvet_for_eval.main(["--check", str(questions)]) == 0
    assert convert_mmvet_for_eval.main(["--src", str(answers)]) == 2
    assert "--dst is needed with --src" in capsys.readouterr().err
