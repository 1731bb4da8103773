"""Images that a question file itself holds: data: URLs in JSON lines."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from PIL import Image

from llava.eval import model_vqa_loader, model_vqa_science
from llava.eval.sweep import command as sweep
from llava.utils import demo_picture_path
from tests.llava.eval.files import write_json, write_rows

PICTURE = demo_picture_path().read_bytes()
TEXT = "What is in the picture?"
BASE64 = base64.b64encode(PICTURE).decode()
URL = f"data:image/png;base64,{BASE64}"


def ask(folder: Path, *images: str) -> tuple[list[str], Path]:
    """Flags of a question about each image, and the file of answers."""
    rows = [{"question_id": number, "image": image, "text": TEXT} for number, image in enumerate(images)]
    file, answers = write_rows(folder / "q.jsonl", rows), folder / "a.jsonl"
    flags = [f"--question-file={file}", f"--answers-file={answers}", f"--image-folder={folder}", "--device=cpu"]
    return flags, answers


def test_a_data_url_is_answered_as_its_file_is(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    flags, answers = ask(tmp_path, "a.png", URL, URL)
    assert model_vqa_loader.main(flags) == 0
    of_file, *of_url = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert {row["text"] for row in of_url} == {of_file["text"]}
    (name,) = {row["metadata"]["image"] for row in of_url}
    assert name.startswith("sha256:") and len(name) < 30
    before = answers.read_bytes()
    assert model_vqa_loader.main(flags) == 0  # the same run continues
    assert answers.read_bytes() == before


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        ("data:image/png;base64,####" + "A" * 5000, "the image's base64 text is broken; check the file of questions"),
        ("data:image/png;base64," + "QUJD" * 1000, "not a readable image; it is broken"),
        ("data:image/png," + "x" * 5000, "a data: URL must read data:image/...;base64,..."),
        ("data:", "a data: URL must read data:image/...;base64,..."),
        (BASE64, "not the name of a file but base64 text; it needs data:image/png;base64, before it"),
        ("/" + BASE64, "not the name of a file but base64 text"),
        ("x. y" * 5000, "missing"),
    ],
    ids=["no base64", "no image", "no base64 URL", "empty URL", "base64 alone", "base64 as a path", "a long name"],
)
@pytest.mark.parametrize("name", ["model_vqa_loader", "model_vqa_science", "qlip sweep"])
def test_a_wrong_image_is_named_in_a_short_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, image: str, fault: str
) -> None:
    flags, _ = ask(tmp_path, image)
    if name == "model_vqa_science":
        entry = {"id": 0, "image": image, "conversations": [{"from": "human", "value": TEXT}]}
        flags[0] = f"--question-file={write_json(tmp_path / 'q.json', [entry])}"
    if name == "qlip sweep":
        write_rows(tmp_path / "answers.jsonl", [{"question_id": 0, "answer": "a ring"}])
        flags = [*flags[:1], flags[2], f"--answers-file={tmp_path / 'answers.jsonl'}", f"--out={tmp_path / 'out'}"]
    mains = {"model_vqa_loader": model_vqa_loader, "model_vqa_science": model_vqa_science, "qlip sweep": sweep}
    assert mains[name].main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert fault in line
    assert len(line) < 600
    named = f"that of question 0 in {tmp_path / 'q.json'}"
    assert (named in line) == image.startswith("data:")
    assert ("--image-folder" in line) != image.startswith("data:")


def test_a_sweep_measures_data_urls(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    asked = {"text": TEXT, "answer": "ring"}
    rows = [{"question_id": i, "image": image} | asked for i, image in enumerate(("a.png", URL))]
    file = write_rows(tmp_path / "q.jsonl", rows)
    flags = [f"--question-file={file}", f"--image-folder={tmp_path}", f"--out={tmp_path / 'out'}", "--device=cpu"]
    assert sweep.main([*flags, "--max-tokens=64", "--max-new-tokens=2"]) == 0
    records = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [record["pictures"] for record in records] == [2, 2]  # of CLIP and of QLIP
