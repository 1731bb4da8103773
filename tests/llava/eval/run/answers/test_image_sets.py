"""A run continues on the pictures that it began with, wherever they are now."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from llava.eval import model_vqa_loader, vstar_likelihood
from llava.eval.run.answers import answer_file
from tests.llava.eval.files import read_rows, write_rows

Main = Callable[[Sequence[str]], int]
NAMES = ("0.png", "1.png", "sub/2.png")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Questions about three pictures in `first`; `second` has pictures of these names and sizes too."""
    for folder, shade in (("first", 0), ("second", 90)):
        for number, name in enumerate(NAMES):
            file = tmp_path / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (28, 28), (shade, number, 0)).save(file)
    asked = [
        {"question_id": n, "image": name, "text": "What?\n(A) red\n(B) blue", "label": "A", "category": "x"}
        for n, name in enumerate(NAMES)
    ]
    write_rows(tmp_path / "q.jsonl", asked)
    return tmp_path


def run(place: Path, folder: Path, main: Main, *more: str) -> int:
    files = [f"--question-file={place / 'q.jsonl'}", f"--answers-file={place / 'a.jsonl'}"]
    return main([*files, f"--image-folder={folder}", "--device=cpu", *more])


@pytest.mark.parametrize("main", [model_vqa_loader.main, vstar_likelihood.main])
def test_another_set_of_pictures_is_refused_unless_the_run_starts_over(
    place: Path, capsys: pytest.CaptureFixture[str], main: Main
) -> None:
    assert run(place, place / "first", main, "--limit=2") == 0
    before = (place / "a.jsonl").read_bytes()
    capsys.readouterr()
    assert run(place, place / "second", main) == 2
    error = capsys.readouterr().err
    assert f"a.jsonl:1 answers question 0 about another image than {place / 'second' / '0.png'}" in error
    assert "give the --image-folder of before to continue, or give another --answers-file" in error
    assert (place / "a.jsonl").read_bytes() == before
    assert run(place, place / "second", main, "--no-resume") == 0
    assert len(read_rows(place / "a.jsonl")) == 3


def test_the_same_pictures_in_another_folder_or_seen_from_another_one_continue_to_the_same_bytes(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(place, place / "first", model_vqa_loader.main) == 0
    whole = (place / "a.jsonl").read_bytes()
    (place / "a.jsonl").unlink()
    assert run(place, place / "first", model_vqa_loader.main, "--limit=1") == 0
    shutil.move(place / "first", place / "moved")
    assert run(place, place / "moved", model_vqa_loader.main, "--limit=2") == 0
    monkeypatch.chdir(place / "moved")
    assert run(place, Path(), model_vqa_loader.main) == 0
    assert (place / "a.jsonl").read_bytes() == whole


def test_answers_of_before_pictures_were_hashed_continue(place: Path) -> None:
    assert run(place, place / "first", model_vqa_loader.main, "--limit=2") == 0
    rows = read_rows(place / "a.jsonl")
    for row in rows:
        assert row["metadata"].pop("image_hash").startswith("sha256:")
    write_rows(place / "a.jsonl", rows)
    assert run(place, place / "second", model_vqa_loader.main) == 0
    assert len(read_rows(place / "a.jsonl")) == 3


def test_a_picture_that_is_gone_is_no_other_one(place: Path) -> None:
    assert run(place, place / "first", model_vqa_loader.main, "--limit=2") == 0
    (place / "first" / "0.png").unlink()
    assert run(place, place / "first", model_vqa_loader.main, "--skip-unreadable") == 0


def test_only_some_of_many_answers_are_compared_from_the_first_to_the_last(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set of pictures on a network is not read as a whole before a run continues."""
    read: list[str] = []
    monkeypatch.setattr(answer_file, "COMPARED", 3)
    monkeypatch.setattr(answer_file, "hash_image", lambda image: read.append(Path(image).name))
    asked = [{"question_id": n, "image": f"{n}.png", "text": "What?"} for n in range(9)]
    write_rows(place / "q.jsonl", asked)
    for n in range(9):
        Image.new("RGB", (28, 28)).save(place / f"{n}.png")
    assert run(place, place, model_vqa_loader.main) == 0
    assert json.loads((place / "a.jsonl").read_text().splitlines()[8])["metadata"]["image_hash"]
    assert run(place, place, model_vqa_loader.main) == 0
    assert read == ["0.png", "4.png", "8.png"]
