"""TextVQA on hand-made answers, scored by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava.eval import eval_textvqa
from tests.llava.eval.files import write_json, write_rows
from tests.llava.eval.scoring import SUFFIX


@pytest.mark.parametrize(
    "prompt",
    [
        "What brand is it?" + SUFFIX,
        "What brand is it?\nReference OCR token: KODAK, 3.5" + SUFFIX,
        "Reference OCR token: KODAK\nWhat brand is it?" + SUFFIX,
        "OCR tokens: KODAK. Question: What brand is it? Short answer:",
    ],
)
def test_the_question_in_a_prompt_of_textvqa(prompt: str) -> None:
    assert eval_textvqa.find_question(prompt) == "what brand is it?"


def test_a_prompt_without_a_question_is_refused() -> None:
    with pytest.raises(ValueError, match="no question in the prompt 'OCR tokens: KODAK'"):
        eval_textvqa.find_question("OCR tokens: KODAK")
    with pytest.raises(ValueError, match="no question in the prompt ''"):
        eval_textvqa.find_question("")


def textvqa_files(folder: Path, said: list[tuple[str, str, str]]) -> list[str]:
    """(image, question, what the model said) of each; annotated are two about one image, one about another."""
    data = [
        {"image_id": "i1", "question": "What brand is it?", "answers": ["Kodak"] * 7 + ["the kodak", "agfa", "agfa"]},
        {"image_id": "i1", "question": "what year?", "answers": ["1999"] * 9 + ["1998"]},
        {"image_id": "i2", "question": "How many?", "answers": ["2", "two", *(f"{n}" for n in range(3, 11))]},
    ]
    write_json(folder / "val.json", {"data": data})
    rows = [{"question_id": name, "prompt": question + SUFFIX, "text": text} for name, question, text in said]
    write_rows(folder / "a.jsonl", rows)
    return ["--annotation-file", str(folder / "val.json"), "--result-file", str(folder / "a.jsonl")]


def test_textvqa_by_hand(tmp_path: Path) -> None:
    """ "KODAK." has eight matches: 1. "1998" has one: 0.3. "Two" has two, "2" and "two": 0.6. Mean 1.9 / 3."""
    said = [("i2", "How many?", "Two"), ("i1", "What brand is it?", "KODAK."), ("i1", "what year?", "1998")]
    assert eval_textvqa.main([*textvqa_files(tmp_path, said), "--json", str(tmp_path / "s.json")]) == 0
    (row,) = json.loads((tmp_path / "s.json").read_text())["rows"].values()
    assert row == {"accuracy": pytest.approx(190 / 3), "questions": 3}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([("i1", "what year?", "x")], "lacks the answers to 2 of 3 questions, for example 'i1' / 'what brand is it?'"),
        ([("i1", "what year?", "x"), ("i1", "What year?", "y")], "'i1' / 'what year?' appears twice"),
    ],
)
def test_a_missing_or_second_answer_to_textvqa_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], said: list[tuple[str, str, str]], words: str
) -> None:
    assert eval_textvqa.main(textvqa_files(tmp_path, said)) == 2
    assert words in capsys.readouterr().err


def test_a_question_that_occurs_twice_for_an_image_is_scored_twice_in_the_files_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [
        {"image_id": "i1", "question": "What brand?", "answers": ["kodak"] * 10},
        {"image_id": "i2", "question": "What brand?", "answers": ["leica"] * 10},
        {"image_id": "i1", "question": "what brand?", "answers": ["agfa"] * 10},
    ]
    write_json(tmp_path / "val.json", {"data": data})
    said = [("i1", "kodak"), ("i1", "agfa"), ("i2", "leica"), ("i1", "fuji")]
    rows = [{"question_id": name, "prompt": "What brand?" + SUFFIX, "text": text} for name, text in said]
    scores = []
    for order in ((0, 1, 2), (1, 0, 2), (0, 2), (0, 1, 2, 3)):
        write_rows(tmp_path / "a.jsonl", [rows[i] for i in order])
        flags = ["--annotation-file", str(tmp_path / "val.json"), "--result-file", str(tmp_path / "a.jsonl")]
        code = eval_textvqa.main([*flags, "--json", str(tmp_path / "s.json")])
        (row,) = json.loads((tmp_path / "s.json").read_text())["rows"].values()
        scores.append((code, row["accuracy"]) if code == 0 else code)
    assert scores == [(0, 100.0), (0, pytest.approx(100 / 3)), 2, 2]
    errors = capsys.readouterr().err
    assert "lacks the answers to 1 of 3 questions, for example 'i1' / 'what brand? (2)'" in errors
    assert "a.jsonl:4: 'i1' / 'what brand?' appears twice" in errors


def test_each_answers_file_of_a_folder_gets_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """LLaVA's `--result-dir`. What the runner could not answer is in files of another name."""
    questions = ("i1", "What brand is it?"), ("i1", "what year?"), ("i2", "How many?")
    annotations = textvqa_files(tmp_path, [])[:2]
    for name, texts in {"b": ("kodak", "1999", "x"), "a": ("x", "1999", "x")}.items():
        said = zip(questions, texts, strict=True)
        rows = [{"question_id": image, "prompt": text + SUFFIX, "text": answer} for (image, text), answer in said]
        write_rows(tmp_path / "run" / f"{name}.jsonl", rows)
    write_rows(tmp_path / "run" / "b.errors.jsonl", [{"error": "no picture"}])
    (tmp_path / "run" / "notes.txt").write_text("of another kind")
    flags = [*annotations, "--result-dir", str(tmp_path / "run"), "--json", str(tmp_path / "s.json")]
    assert eval_textvqa.main(flags) == 0
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert list(rows) == ["a.jsonl", "b.jsonl"]
    assert [row["accuracy"] for row in rows.values()] == [pytest.approx(100 / 3), pytest.approx(200 / 3)]
    (tmp_path / "empty").mkdir()
    assert eval_textvqa.main([*annotations, "--result-dir", str(tmp_path / "empty")]) == 2
    assert "holds no *.jsonl" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        eval_textvqa.main(annotations)
    assert stopped.value.code == 2


def test_a_question_without_ten_annotators_and_a_prompt_without_a_question_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = textvqa_files(tmp_path, [("i1", "what year?", "x")])
    write_rows(tmp_path / "a.jsonl", [{"question_id": "i1", "prompt": "OCR tokens: KODAK", "text": "x"}])
    assert eval_textvqa.main(flags) == 2
    assert "a.jsonl:1: no question in the prompt 'OCR tokens: KODAK'" in capsys.readouterr().err
    content = json.loads((tmp_path / "val.json").read_text())
    content["data"][1]["answers"].pop()
    write_json(tmp_path / "val.json", content)
    assert eval_textvqa.main(flags) == 2
    words = "val.json: 'i1' / 'what year?' has 9 annotators' answers; the soft accuracy needs 10"
    assert words in capsys.readouterr().err
