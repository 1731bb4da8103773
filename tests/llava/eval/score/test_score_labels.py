"""Every scorer checks its labels against the question file before anything is answered: `--check`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llava.eval import (
    eval_cvbench,
    eval_gpt_review_bench,
    eval_gqa,
    eval_mmbench,
    eval_mme,
    eval_pope,
    eval_qbench,
    eval_realworldqa,
    eval_science_qa,
    eval_seed,
    eval_textvqa,
    eval_vstar,
)
from scripts import convert_vizwiz_for_submission, convert_vqav2_for_submission
from tests.llava.eval.files import read_rows, write_json, write_rows
from tests.llava.eval.review.judge_server import write_bench
from tests.llava.eval.scoring import COLOURS, SUFFIX, TASKS, cv, gqa_question, problem, seed_question
from tests.llava.eval.test_eval_mmbench import table

Main = Callable[[Sequence[str]], int]
Made = tuple[Path, list[str]]
"""The question file, and the flags that name the labels."""


def lines(folder: Path, *texts: str, names: Sequence[Any] = (1, 2), **more: Any) -> Path:
    """LLaVA's question file about one image."""
    rows = [{"question_id": n, "image": "i.jpg", "text": t, **more} for n, t in zip(names, texts, strict=False)]
    return write_rows(folder / "q.jsonl", rows)


def pope(folder: Path, fits: bool) -> Made:
    texts = ("Is there a dog in the image?", "Is there a cat in the image?" if fits else "Is there a car in the image?")
    labels = [{"question_id": 1, "image": "i.jpg", "text": text, "label": "no"} for text in texts]
    write_rows(folder / "coco" / "coco_pope_random.json", labels)
    asked = lines(folder, texts[0] + SUFFIX, "Is there a cat in the imange?" + SUFFIX, category="random")
    return asked, ["--annotation-dir", str(folder / "coco"), "--question-file", str(asked)]


def mme(folder: Path, fits: bool) -> Made:
    asked = []
    for task in TASKS:
        (folder / "mme" / task).mkdir(parents=True)
        texts = (f"Is it {task}?", "Is it not?" if fits or task != "OCR" else "Is it none?")
        labels = zip(texts, ("Yes", "No"), strict=True)
        (folder / "mme" / task / "1.txt").write_text("".join(f"{text}\t{label}\n" for text, label in labels))
        asked += [{"question_id": f"{task}/1.jpg", "text": text + SUFFIX} for text in (texts[0], "Is it not?")]
    return write_rows(folder / "q.jsonl", asked), ["--data-dir", str(folder / "mme")]


def textvqa(folder: Path, fits: bool) -> Made:
    data = [
        {"image_id": name, "question": "What Brand?", "answers": ["x"] * 10} for name in ("1", "2" if fits else "3")
    ]
    labels = write_json(folder / "val.json", {"data": data})
    return lines(folder, *["What Brand?\nReference OCR token: A" + SUFFIX] * 2), ["--annotation-file", str(labels)]


def gqa(folder: Path, fits: bool) -> Made:
    question = gqa_question("yes", "verify", "attr")
    labels = write_json(folder / "gqa.json", {"1": question, "2" if fits else "3": question})
    return lines(folder, "a", "b"), ["--question-file", str(labels)]


def seed(folder: Path, fits: bool) -> Made:
    questions = [seed_question(name, "A", "image", 1) for name in ("1", "2" if fits else "3")]
    labels = write_json(folder / "SEED-Bench.json", {"questions": questions, "question_type": {"all": 1}})
    return lines(folder, "a", "b"), ["--annotation-file", str(labels)]


def science_qa(folder: Path, fits: bool) -> Made:
    write_json(folder / "problems.json", {name: problem("social", 1, 0) for name in "123"})
    write_json(folder / "pid_splits.json", {"test": ["1", "2" if fits else "3"]})
    entries = [{"id": name, "conversations": [{"from": "human", "value": "?"}]} for name in "12"]
    return write_json(folder / "q.json", entries), ["--base-dir", str(folder)]


def mmbench(folder: Path, fits: bool) -> Made:
    labels = table(folder)
    asked = folder / "asked.tsv"
    rows = labels.read_text().splitlines(keepends=True)
    asked.write_text("".join(rows if fits else rows[:-1]))
    return asked, ["--annotation-file", str(labels)]


def vstar(folder: Path, fits: bool) -> Made:
    asked = lines(folder, COLOURS, COLOURS, category="direct_attributes" if fits else "colours", label="A")
    return asked, ["--question-file", str(asked)]


def cvbench(folder: Path, fits: bool) -> Made:
    asked = lines(folder, "?", "?", **{**cv("COCO" if fits else "coco", "Count", "(A)"), "text": COLOURS})
    return asked, ["--question-file", str(asked)]


def realworldqa(folder: Path, fits: bool) -> Made:
    asked = lines(folder, "?", "?", **({"answer": "A"} if fits else {}))
    return asked, ["--question-file", str(asked)]


def gpt_review_bench(folder: Path, fits: bool) -> Made:
    flags = write_bench(folder)
    asked = folder / "questions.jsonl"
    if not fits:
        write_rows(asked, [{**row, "image": "003.png"} for row in read_rows(asked)])
    return asked, flags


def qbench(folder: Path, fits: bool) -> Made:
    entry = {"img_path": "1.jpg", "question": "Is it sharp?", "candidates": ["Yes", "No"]}
    asked = write_json(folder / "llvisionqa_dev.json", [{**entry, "correct_ans": "No" if fits else "Perhaps"}])
    return asked, ["--question-file", str(asked)]


CASES: dict[str, tuple[Main, Callable[[Path, bool], Made], str]] = {
    "pope": (eval_pope.main, pope, "lacks 1 of the 2 random questions, for example 'Is there a car in the image?'"),
    "mme": (eval_mme.main, mme, "lacks 1 of 28 questions, for example 'OCR' / '1' / 'Is it none?'"),
    "textvqa": (eval_textvqa.main, textvqa, "lacks 1 of 2 questions, for example '3' / 'what brand?'"),
    "gqa": (eval_gqa.main, gqa, "lacks 1 of 2 questions, for example '3'"),
    "seed": (eval_seed.main, seed, "lacks 1 of 2 questions, for example '3'"),
    "science_qa": (eval_science_qa.main, science_qa, "lacks 1 of 2 questions, for example '3'"),
    "mmbench": (eval_mmbench.main, mmbench, "1 of 3 questions have no answer, for example 3"),
    "vstar": (eval_vstar.main, vstar, "category is 'colours'"),
    "cvbench": (eval_cvbench.main, cvbench, "source is 'coco'"),
    "gpt_review_bench": (eval_gpt_review_bench.main, gpt_review_bench, "does not describe '003.png'"),
    "qbench": (eval_qbench.main, qbench, "entry 0: correct_ans is 'Perhaps'; it must be one of Yes, No"),
    "realworldqa": (eval_realworldqa.main, realworldqa, "the row has no answer"),
}


@pytest.mark.parametrize("name", CASES)
def test_labels_that_fit_the_questions_pass_and_others_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    main, make, words = CASES[name]
    for fits in (True, False):
        folder = tmp_path / str(fits)
        folder.mkdir()
        asked, flags = make(folder, fits)
        assert main([*flags, "--check", str(asked)]) == (0 if fits else 2)
        said = capsys.readouterr()
        if fits:
            assert said.out == f"{asked}: all labels have their questions\n"
        else:
            assert words in said.err and len(said.err.splitlines()) == 1


@pytest.mark.parametrize("name", ["mme", "textvqa", "gqa"])
def test_questions_without_labels_are_no_benchmark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """As where labels were unpacked in part: a score over a part is none."""
    main, make, _ = CASES[name]
    asked, flags = make(tmp_path, True)
    row = json.loads(asked.read_text().splitlines()[0])
    other = {"mme": "Is it blue?", "textvqa": "whose?\nReference OCR token: A", "gqa": "c"}[name]
    more = {**row, "question_id": row["question_id"] if name == "mme" else 9, "text": other}
    asked.write_text(asked.read_text() + json.dumps(more) + "\n")
    assert main([*flags, "--check", str(asked)]) == 2
    count = len(asked.read_text().splitlines())
    assert f"lacks labels of 1 of the {count} questions in {asked}, for example" in capsys.readouterr().err


def test_every_scorer_is_checked() -> None:
    folder = Path(eval_pope.__file__).parent
    assert {f"eval_{name}" for name in CASES} == {path.stem for path in folder.glob("eval_*.py")}


def test_answers_or_a_check_must_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked, flags = gqa(tmp_path, True)
    for more in ([], ["--check", str(asked), "--result-file", str(asked)]):
        with pytest.raises(SystemExit):
            eval_gqa.main([*flags, *more])
        assert "--check" in capsys.readouterr().err


def check_submissions(folder: Path, split: tuple[int, int], vizwiz: tuple[int, int]) -> tuple[int, int]:
    """Checks question files of VQAv2, whose test set has questions 1 and 2, and VizWiz: the exit codes."""
    write_rows(folder / "split.jsonl", [{"question_id": name} for name in split])
    write_rows(folder / "llava_vqav2_mscoco_test2015.jsonl", [{"question_id": name} for name in (1, 2)])
    asked = lines(folder, "a", "b", names=vizwiz)
    return (
        convert_vqav2_for_submission.main(["--dir", str(folder), "--split", "split", "--check"]),
        convert_vizwiz_for_submission.main(["--annotation-file", str(asked), "--check"]),
    )


def test_right_question_files_of_submissions_pass_and_nothing_is_written(tmp_path: Path) -> None:
    assert check_submissions(tmp_path, (1, 2), (1, 2)) == (0, 0)
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl"}


def test_wrong_question_files_of_submissions_are_named_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_submissions(tmp_path, (1, 3), (1, 1)) == (2, 2)
    errors = capsys.readouterr().err
    assert "llava_vqav2_mscoco_test2015.jsonl lacks 1 of 2 questions, for example '3'" in errors
    assert "q.jsonl:2: '1' appears twice" in errors
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl"}
