"""Every example runs, on small random checkpoints."""

from __future__ import annotations

import functools
import inspect
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import scripts.examples
from scripts.examples import feature_map, transformers_chat, zero_shot
from tests.qlip.integrations.models import (
    make_contrastive_model,
    make_contrastive_processor,
    make_language_model,
    make_processor,
    make_vision_model,
    picture,
)


@pytest.fixture
def photo(tmp_path):
    picture(112, 168, 1).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def save(folder: Path, *parts) -> str:
    for part in parts:
        part.save_pretrained(folder)
    return str(folder)


def test_transformers_chat(tmp_path, photo, capsys):
    path = save(tmp_path / "model", make_language_model("llava"), make_processor("llava"))
    transformers_chat.main(photo, "what is it?", path)
    assert capsys.readouterr().out.strip()


def test_zero_shot(tmp_path, photo, capsys):
    path = save(tmp_path / "model", make_contrastive_model("clip"), make_contrastive_processor())
    zero_shot.main(photo, "a cat", "a dog", model_path=path)
    lines = [line.split(" ", 1) for line in capsys.readouterr().out.splitlines()]
    assert {label for _, label in lines} == {"a cat", "a dog"}
    assert sum(float(share) for share, _ in lines) == pytest.approx(1, abs=2e-3)


def test_feature_map(tmp_path, photo):
    path = save(tmp_path / "model", make_vision_model("dinov2"))
    feature_map.main(photo, str(tmp_path / "out.png"), path)
    before = np.asarray(Image.open(photo).resize((160, 120)))  # 16 x 12 cells, drawn by 10 pixels each
    after = np.asarray(Image.open(tmp_path / "out.png"))
    assert after.shape == (121, 161, 3)  # and a last line
    assert (after[:-1, :-1] != before).mean() > 0.5


NAMES = {
    "transformers_chat": ["photo.png", "what?"],
    "zero_shot": ["photo.png", "a cat", "a dog"],
    "feature_map": ["photo.png", "out.png"],
}


def run(example, *flags: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        scripts.examples.run(example, flags)
    return stopped.value.code


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_is_the_examples_parameters(name):
    example, said = import_module(f"scripts.examples.{name}").main, []

    @functools.wraps(example)
    def listen(*words, **options):
        said.append((words, options))

    assert run(listen, *NAMES[name], "--model-path", "here") == run(listen, *NAMES[name]) == 0
    default = inspect.signature(example).parameters["model_path"].default
    assert said == [(tuple(NAMES[name]), {"model_path": path}) for path in ("here", default)]


@pytest.mark.parametrize("name", NAMES)
def test_without_arguments_a_picture_or_a_connection_it_says_one_line(name, photo, tmp_path, monkeypatch, capsys):
    example = import_module(f"scripts.examples.{name}").main
    assert run(example) == 2
    assert capsys.readouterr().err.startswith(f"{name}: error: the following arguments are required: picture, ")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    for file, message in (("absent.png", "absent.png"), ("text.png", "text.png"), ("photo.png", "connect")):
        assert run(example, file, *NAMES[name][1:], "--model-path", "nobody/nothing") == 2
        error = capsys.readouterr().err
        assert error.startswith(f"{name}: error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("example", [feature_map.main, zero_shot.main])
def test_a_folder_that_does_not_exist_is_said_as_such(example, photo, tmp_path, capsys):
    assert run(example, photo, str(tmp_path / "out.png"), "--model-path", "/nope") == 2
    assert "--model-path /nope: there is no such folder" in capsys.readouterr().err


def test_a_tower_without_its_text_half_classifies_nothing(photo, tmp_path, capsys):
    path = save(tmp_path / "model", make_vision_model("clip"))
    assert run(zero_shot.main, photo, "a cat", "--model-path", path) == 2
    assert "is of type 'clip_vision_model', without CLIP's text half" in capsys.readouterr().err


def test_each_is_short_and_is_run_here():
    files = {file.stem: file for file in Path(scripts.examples.__file__).parent.glob("[!_]*.py")}
    assert files.keys() == {"transformers_chat", "zero_shot", "feature_map"}
    assert all(len(file.read_text().splitlines()) <= 25 for file in files.values())
