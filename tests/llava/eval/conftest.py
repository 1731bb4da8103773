"""Shared by the tests of question files: a small benchmark, the embedded model, and a run that nothing disturbed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from llava.eval import model_vqa_loader
from llava.model.builder import load_pretrained_model
from llava.serve.engine import ChatEngine
from llava.utils import demo_model_path
from playground.scenes import PRESETS, scene
from tests.llava.eval.files import PICTURES, TEXTS, write_rows
from tests.llava.loading import loading_once


@pytest.fixture(scope="module", autouse=True)
def model_loaded_once() -> Iterator[None]:
    with loading_once():
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and questions.jsonl; an id occurs several times, as in MME."""
    folder = tmp_path_factory.mktemp("benchmark")
    for i in range(PICTURES):
        Image.fromarray(scene(PRESETS["detail"], 21, i).image).save(folder / f"{i}.png")
    names = [f"{i}.png" for i in range(PICTURES)]
    write_rows(
        folder / "questions.jsonl",
        [{"question_id": name, "image": name, "text": text} for name in names for text in TEXTS],
    )
    return folder


@pytest.fixture(scope="session")
def engine() -> ChatEngine:
    """The embedded model, with its quadtree."""
    return ChatEngine(*load_pretrained_model(demo_model_path(), device="cpu"))


@pytest.fixture(scope="session", params=[True, False], ids=["qlip", "clip"])
def either_engine(request: pytest.FixtureRequest) -> ChatEngine:
    """The embedded model with its quadtree, and with CLIP's tower."""
    return ChatEngine(*load_pretrained_model(demo_model_path(), device="cpu", qlip=request.param))


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """The answers file of `flags`."""
    return tmp_path / "answers.jsonl"


@pytest.fixture
def flags(folder: Path, answers: Path) -> list[str]:
    """A run over `folder`."""
    return [
        f"--question-file={folder / 'questions.jsonl'}",
        f"--image-folder={folder}",
        f"--answers-file={answers}",
        "--device=cpu",
    ]


@pytest.fixture(scope="session")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The answers of a run that nothing disturbed."""
    answers = tmp_path_factory.mktemp("whole") / "answers.jsonl"
    arguments = [f"--question-file={folder / 'questions.jsonl'}", f"--image-folder={folder}", "--device=cpu"]
    assert model_vqa_loader.main([*arguments, f"--answers-file={answers}"]) == 0
    return answers.read_bytes()
