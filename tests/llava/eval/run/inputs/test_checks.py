"""Every command that answers questions checks its inputs before the model is loaded, and can take the first few."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.eval import (
    model_vqa,
    model_vqa_loader,
    model_vqa_mmbench,
    model_vqa_science,
    ray_batch,
    vstar_likelihood,
)
from llava.eval.run import batch_run, cluster, likelihood
from llava.eval.run.inputs.checks import check_images, find_fault
from llava.eval.sweep import command as sweep
from llava.eval.sweep import measure
from llava.images import load_image
from llava.utils import demo_picture_path
from scripts.soak import hostile
from tests.llava.eval.files import write_json, write_rows

PICTURE = demo_picture_path().read_bytes()
TEXT = "How many objects are there?\n(A) 2\n(B) 3"
Main = Callable[[Sequence[str]], int]

FROM_FILES: dict[str, Main] = {
    "model_vqa": model_vqa.main,
    "model_vqa_loader": model_vqa_loader.main,
    "model_vqa_science": model_vqa_science.main,
    "ray_batch": ray_batch.main,
    "vstar_likelihood": vstar_likelihood.main,
    "qlip sweep": sweep.main,
}


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (batch_run, cluster, likelihood, measure):
        monkeypatch.setattr(module, "load_engine", lambda _: pytest.fail("no model may be loaded"))
    monkeypatch.setattr(batch_run, "prepare_ahead", lambda *_, **__: pytest.fail("no picture may be opened"))


def make_folder(path: Path, *broken: str) -> Path:
    """Four pictures; those of `broken` are missing ("-2") or hold text ("2")."""
    path.mkdir()
    for number in range(4):
        if f"-{number}" not in broken:
            (path / f"{number}.png").write_bytes(b"text" if str(number) in broken else PICTURE)
    return path


def make_flags(name: str, folder: Path, images: Path, count: int = 12) -> list[str]:
    """A question file of `count` questions about four pictures, in the command's format, and the flags for it."""
    if name == "model_vqa_science":
        said = [{"from": "human", "value": f"<image>\n{TEXT}"}]
        entries = [{"id": str(i), "image": f"{i % 4}.png", "conversations": said} for i in range(count)]
        file = write_json(folder / "q.json", entries)
    else:
        more = {"text": TEXT, "label": "B", "answer": "3"}
        file = write_rows(
            folder / "q.jsonl", [{"question_id": i, "image": f"{i % 4}.png", **more} for i in range(count)]
        )
    out = ["--out", str(folder / "out")] if name == "qlip sweep" else ["--answers-file", str(folder / "a.jsonl")]
    return ["--question-file", str(file), "--image-folder", str(images), *out, "--device", "cpu"]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", FROM_FILES)
def test_missing_and_unreadable_pictures_are_said_once_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    images = make_folder(tmp_path / "images", "-1", "-3", "2")
    assert FROM_FILES[name](make_flags(name, tmp_path, images)) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert f"2 of 4 images are missing, for example {images / '1.png'} and {images / '3.png'}; " in error
    assert f"1 of 4 images are unreadable, for example {images / '2.png'}: not a readable image; it is broken" in error
    assert "not one of PNG, JPEG, WEBP, GIF, BMP, TIFF, PPM; check --image-folder" in error
    assert ("--skip-unreadable" in error) == (name != "qlip sweep")
    assert not (tmp_path / "a.jsonl").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (lambda: hostile.tiff_with_tags(tags=100, size=2**20), "tags hold more bytes than the file"),
        (lambda: hostile.gif_with_comment(2**21), "more than 1,048,576 bytes of comments"),
        (lambda: hostile.png_of_chunks(100_001), "more than 100,000 chunks"),
    ],
    ids=["TIFF", "GIF", "PNG"],
)
def test_a_header_that_costs_much_is_unreadable_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], bytes], limit: str
) -> None:
    data = make()
    (tmp_path / "picture").write_bytes(data)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    encoded = "data:image/x;base64," + base64.b64encode(data).decode()
    with pytest.raises(ValueError, match=f"1 of 1 images are unreadable, for example .*picture: .*{limit}"):
        check_images([tmp_path / "picture"], tmp_path)
    assert limit in str(find_fault(encoded))


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", FROM_FILES)
def test_a_missing_folder_and_a_missing_question_file_are_said_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    flags = make_flags(name, tmp_path, tmp_path / "nowhere")
    assert FROM_FILES[name](flags) == 2
    absent = f"there is no image folder {tmp_path / 'nowhere'}; name it with --image-folder"
    assert capsys.readouterr().err == f"{name}: error: {absent}\n"
    for file, words in ((tmp_path / "none.jsonl", "there is no question file"), (tmp_path, "is a folder")):
        assert FROM_FILES[name]([*flags, "--question-file", str(file)]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.usefixtures("no_model")
def test_a_picture_inside_mmbenchs_table_is_checked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = ("index", "question", "hint", "A", "B", "C", "D", "image")
    pictures = (base64.b64encode(PICTURE).decode(), base64.b64encode(b"text" * 30).decode(), "no base64 " * 10)
    lines = ["\t".join(columns), *(f"{i}\tWhich?\t\tx\ty\t\t\t{picture}" for i, picture in enumerate(pictures))]
    (tmp_path / "q.tsv").write_text("\n".join(lines) + "\n")
    flags = ["--question-file", str(tmp_path / "q.tsv"), "--answers-file", str(tmp_path / "a.jsonl")]
    assert model_vqa_mmbench.main([*flags, "--image-folder", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    table = tmp_path / "q.tsv"
    assert f"2 of 3 images are unreadable, for example that of question 1 in {table} and that of question 2" in error
    assert "; check the file of questions, which holds them" in error and "--image-folder" not in error


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", sorted(FROM_FILES.keys() - {"vstar_likelihood"}))  # whose questions have options
def test_an_empty_question_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(f"{__name__}.TEXT", " ")
    assert FROM_FILES[name](make_flags(name, tmp_path, make_folder(tmp_path / "images"))) == 2
    assert capsys.readouterr().err.endswith(": the question is empty\n")


@pytest.mark.parametrize("form", ["plain", "MIME", "data URL"])
def test_base64_is_checked_as_it_is_read(form: str) -> None:
    text = {
        "plain": base64.b64encode(PICTURE).decode(),
        "MIME": base64.encodebytes(PICTURE).decode(),  # with line breaks
        "data URL": f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}",
    }[form]
    source = f"data:image;base64,{text}"  # as MMBench's cells become
    assert find_fault(source) is None and load_image(source)


def test_questions_without_pictures_need_no_folder(tmp_path: Path) -> None:
    entries = [{"id": "1", "conversations": [{"from": "human", "value": "How many?"}]}]
    flags = ["--question-file", str(write_json(tmp_path / "q.json", entries)), "--image-folder", str(tmp_path / "no")]
    assert model_vqa_science.main([*flags, "--answers-file", str(tmp_path / "a.jsonl"), "--max_new_tokens=2"]) == 0


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_picture_that_is_cut_short_is_an_error_of_its_questions_alone(tmp_path: Path) -> None:
    images = make_folder(tmp_path / "images")
    (images / "1.png").write_bytes(PICTURE[: len(PICTURE) // 2])
    assert model_vqa_loader.main(make_flags("model_vqa_loader", tmp_path, images, 4)) == 1
    assert [row["question_id"] for row in read(tmp_path / "a.jsonl")] == [0, 2, 3]
    assert [row["question_id"] for row in read(tmp_path / "a.errors.jsonl")] == [1]


def test_with_skip_unreadable_the_other_questions_are_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = make_flags("model_vqa_loader", tmp_path, make_folder(tmp_path / "images", "-1", "2"), 4)
    assert model_vqa_loader.main([*flags, "--skip-unreadable"]) == 1
    assert [row["question_id"] for row in read(tmp_path / "a.jsonl")] == [0, 3]
    assert caplog.text.count("1 of 4 images are missing") == 1


@pytest.mark.parametrize("name", ["model_vqa_loader", "vstar_likelihood"])
def test_a_limit_answers_the_first_of_the_chunk_and_the_rest_follows_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Only the pictures of those questions are looked at: the last one is missing."""
    images = make_folder(tmp_path / "images", "-3")
    chunk = [*make_flags(name, tmp_path, images, 8), "--num-chunks", "2", "--chunk-idx", "0"]
    assert FROM_FILES[name]([*chunk, "--limit", "2"]) == 0
    assert [row["question_id"] for row in read(tmp_path / "a.jsonl")] == [0, 1]
    assert "only the first 2 of 4 questions were asked (--limit)" in capsys.readouterr().err
    first = (tmp_path / "a.jsonl").read_bytes()
    (images / "3.png").write_bytes(PICTURE)
    assert FROM_FILES[name](chunk) == 0
    assert "--limit" not in capsys.readouterr().err
    assert (tmp_path / "a.jsonl").read_bytes().startswith(first)
    continued = (tmp_path / "a.jsonl").read_bytes()
    assert FROM_FILES[name]([*chunk, "--limit", "1"]) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == continued
    assert FROM_FILES[name]([*chunk, "--no-resume"]) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == continued


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", FROM_FILES)
def test_a_limit_is_at_least_one(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    flags = make_flags(name, tmp_path, make_folder(tmp_path / "images"))
    with pytest.raises(SystemExit, match="2"):
        FROM_FILES[name]([*flags, "--limit", "0"])
    assert "argument --limit: '0' is not allowed; it must be an integer of at least 1" in capsys.readouterr().err
