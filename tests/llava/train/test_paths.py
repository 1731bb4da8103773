"""Runs that cannot train what they are given: one line that names it, mostly before a language model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava.train import run
from tests.llava.train.handwritten import write_data
from tests.llava.train.runs import code_and_error, flags


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, "it")
    return folder


EVALUATED = {"eval_strategy": "steps"}
EARLY = [
    ({"model_name_or_path": "/nowhere"}, "there is no checkpoint folder '/nowhere'"),
    ({"data_path": "/nowhere.json"}, "no such file: /nowhere.json; --data_path names a file or folder of samples"),
    ({"data_path": " "}, "--data_path is empty"),
    ({"image_folder": "/nowhere"}, "there is no image folder /nowhere; name it with --image_folder"),
    ({"vision_tower": "/nowhere", "model_name_or_path": "BASES/vicuna"}, "the vision tower '/nowhere'"),
    ({"vision_tower": "BASES/vicuna", "model_name_or_path": "BASES/vicuna"}, "the vision tower is of type 'llama'"),
    ({**EVALUATED, "eval_questions": "/nowhere.jsonl"}, "there is no file /nowhere.jsonl; --eval_questions names"),
    ({**EVALUATED, "eval_questions": "BASES"}, "--eval_questions BASES is a folder; it names a file of questions"),
    ({**EVALUATED, "eval_data_path": "/nowhere.json"}, "no such file: /nowhere.json; --eval_data_path names a file or"),
    (
        {**EVALUATED, "eval_data_path": "BASES/mm_projector.bin", "eval_image_folder": "/nowhere"},
        "there is no image folder /nowhere; name it with --eval_image_folder",
    ),
    ({"pretrain_mm_mlp_adapter": "/nowhere.bin"}, "there is no file /nowhere.bin; --pretrain_mm_mlp_adapter names"),
    (
        {"pretrain_mm_mlp_adapter": "BASES"},
        "--pretrain_mm_mlp_adapter BASES is a folder; it names the projector's weights, mm_projector.bin:"
        " BASES/mm_projector.bin",
    ),
    ({"pretrain_mm_mlp_adapter": "BASES/clip"}, "BASES/clip is a folder; it names the projector's weights, mm_proj"),
    ({"nonsense": 1}, "unknown flag --nonsense"),
]


def fill(text: object, bases: Path) -> str:
    return str(text).replace("BASES", str(bases))


@pytest.mark.parametrize(("changes", "message"), EARLY)
def test_what_is_not_there_is_named_before_a_model_is_loaded(
    bases, data, tmp_path, monkeypatch, changes, message, capsys
):
    monkeypatch.setattr(run, "assemble", None)
    chosen = {name: fill(value, bases) for name, value in changes.items()}
    code, line = code_and_error(flags(bases / "llava", data, tmp_path / "out", **chosen), capsys)
    assert code == 2 and fill(message, bases) in line


def test_images_need_a_tower(bases, data, tmp_path, capsys):
    code, line = code_and_error(flags(bases / "vicuna", data, tmp_path / "out"), capsys)
    assert code == 2 and "sample 0 has an image, but the model has no vision tower" in line
