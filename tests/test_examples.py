"""Every example runs, on small random checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import scripts.examples
from scripts.examples import feature_map, transformers_chat, zero_shot
from tests.qlip.hosts import (
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
    before, after = (np.asarray(Image.open(file)) for file in (photo, tmp_path / "out.png"))
    assert after.shape == (113, 169, 3)  # and a last line
    assert (after[:-1, :-1] != before).mean() > 0.5


def test_each_is_short_and_is_run_here():
    files = {file.stem: file for file in Path(scripts.examples.__file__).parent.glob("[!_]*.py")}
    assert files.keys() == {"transformers_chat", "zero_shot", "feature_map"}
    assert all(len(file.read_text().splitlines()) <= 25 for file in files.values())
