"""The commands that answer question files: a refused run changes no file and loads no model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.eval import model_vqa, model_vqa_loader, ray_batch, vstar_likelihood
from llava.eval.run import batch_run, cluster, likelihood
from llava.eval.sweep import command as sweep
from llava.eval.sweep import measure

RUNS = [model_vqa.main, model_vqa_loader.main, ray_batch.main, vstar_likelihood.main]
Main = Callable[[Sequence[str]], int]


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a model was loaded")

    for module in (batch_run, likelihood, measure):
        monkeypatch.setattr(module, "load_engine", never)
    monkeypatch.setattr(cluster, "answer_on", never)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    row = {"question_id": 1, "image": "a.png", "text": "What?\n(A) cat\n(B) dog", "label": "A", "answer": "A"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row) + "\n")
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    return tmp_path / "questions.jsonl"


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def refused(main: Main, questions: Path, answers: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The one line of a run that changed nothing."""
    before = content(questions.parent)
    flags = [f"--question-file={questions}", f"--image-folder={questions.parent}", f"--answers-file={answers}", *more]
    assert main(flags) == 2
    assert content(questions.parent) == before
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("main", RUNS)
@pytest.mark.parametrize("more", [(), ("--no-resume",)])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("notes.txt", "to do: buy milk"),
        ("config.json", '{\n  "model_type": "llava"\n}\n'),
        ("table.csv", "question_id,text\n1,cat\n"),
        ("other.jsonl", '{"question_id": 1, "prompt": "?", "text": "cat", "answer_id": "x", "metadata": {}}\n'),
    ],
)
def test_a_file_of_another_kind(
    main: Main, more: tuple[str], name: str, text: str, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = questions.with_name(name)
    answers.write_text(text)
    line = refused(main, questions, answers, capsys, *more)
    assert (
        f"{answers}:1 is not an answer of this runner, so the file stays as it is; name another --answers-file" in line
    )


@pytest.mark.parametrize("main", RUNS)
@pytest.mark.parametrize("make", [None, Path.symlink_to, Path.hardlink_to])
@pytest.mark.parametrize("more", [(), ("--no-resume",)])
def test_the_question_file_by_any_name(
    main: Main, make: Any, more: tuple[str], questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = questions
    if make is not None:
        answers = questions.with_name("answers.jsonl")
        make(answers, questions)
    line = refused(main, questions, answers, capsys, *more)
    assert "is the same file as" in line and str(questions) in line and "name another --answers-file" in line


@pytest.mark.parametrize("main", RUNS)
def test_the_file_of_errors_of_another_kind(main: Main, questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    errors = questions.with_name("run.errors.jsonl")
    errors.write_text("what went wrong: nothing\n")
    line = refused(main, questions, questions.with_name("run.jsonl"), capsys, "--no-resume")
    assert f"{errors}:1 is not an answer of this runner" in line


@pytest.mark.parametrize("main", RUNS)
@pytest.mark.parametrize(("make", "kind"), [(os.mkfifo, "a pipe"), (os.mkdir, "a folder")])
def test_a_pipe_or_a_folder(
    main: Main, make: Any, kind: str, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = questions.with_name("answers.jsonl")
    make(answers)
    assert f"{answers} is {kind}; it must be a regular file" in refused(main, questions, answers, capsys)


@pytest.mark.parametrize("main", RUNS)
def test_answers_to_other_questions(main: Main, questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor is the file of errors beside them forgotten, which a refused run once deleted."""
    answers = questions.with_name("answers.jsonl")
    row = {"question_id": 2, "prompt": "Who?", "text": "me", "metadata": {"index": 0, "image": None}}
    answers.write_text(json.dumps(row) + "\n" + '{"question_id": 2, "pro')
    lost = {"question_id": 2, "prompt": "Who?", "error": "lost", "metadata": {"index": 1}}
    answers.with_name("answers.errors.jsonl").write_text(json.dumps(lost) + "\n")
    line = refused(main, questions, answers, capsys)
    assert f"{answers}:1 answers question 2, but number 0 of the question file is 1" in line and "--no-resume" in line


@pytest.mark.parametrize("main", RUNS)
def test_an_absent_chunk(main: Main, questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--num-chunks=3", "--chunk-idx=3"]
    line = refused(main, questions, questions.with_name("a.jsonl"), capsys, *flags)
    assert "--chunk-idx is 3; it must be below --num-chunks, which is 3" in line


def test_a_sweep_leaves_a_results_file_of_another_kind(questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = questions.parent / "out"
    out.mkdir()
    flags = [f"--question-file={questions}", f"--image-folder={questions.parent}", f"--out={out}"]
    for text in ('{"score": 1}\n', "1.5", '{"task": "dishes", "settings": null}\n', '{"task": {"mo": 1'):
        (out / "results.jsonl").write_text(text)
        assert sweep.main(flags) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{out / 'results.jsonl'}:1 is not a cell of a sweep, so the file stays as it is" in line
        assert content(out) == {"results.jsonl": text.encode()}
