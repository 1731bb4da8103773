"""Runs that cannot train what they are given: one line that names it, mostly before a language model is loaded."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from llava.train import run
from llava.train.arguments import parse_arguments
from llava.train.paths import check_paths
from tests.llava.train.handwritten import write_data
from tests.llava.train.runs import code_and_error, flags, logged, train_on


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, "it")
    samples = json.loads((folder / "data.json").read_text())
    (folder / "text.json").write_text(json.dumps([sample for sample in samples if "image" not in sample]))
    absolute = [sample | {"image": str(folder / sample["image"])} for sample in samples if "image" in sample]
    (folder / "absolute.json").write_text(json.dumps(absolute))
    question = {"question_id": 1, "image": absolute[0]["image"].split("/")[-1], "text": "what?", "answer": "a ring"}
    (folder / "questions.jsonl").write_text(json.dumps(question) + "\n")
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
        {**EVALUATED, "eval_data_path": "DATA/data.json", "eval_image_folder": "/nowhere"},
        "there is no image folder /nowhere; name it with --eval_image_folder: the images of --eval_data_path are in it",
    ),
    (
        {**EVALUATED, "eval_questions": "DATA/questions.jsonl", "eval_image_folder": "/nowhere"},
        "there is no image folder /nowhere; name it with --eval_image_folder: the images of --eval_questions are in it",
    ),
    (
        {**EVALUATED, "data_path": "DATA/text.json", "eval_data_path": "DATA/data.json", "image_folder": "/nowhere"},
        "there is no image folder /nowhere; name it with --image_folder: the images of --eval_data_path are in it",
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


def fill(text: object, bases: Path, data: Path) -> str:
    return str(text).replace("BASES", str(bases)).replace("DATA", str(data))


@pytest.mark.parametrize(("changes", "message"), EARLY)
def test_what_is_not_there_is_named_before_a_model_is_loaded(
    bases, data, tmp_path, monkeypatch, changes, message, capsys
):
    monkeypatch.setattr(run, "assemble", None)
    chosen = {name: fill(value, bases, data) for name, value in changes.items()}
    code, line = code_and_error(flags(bases / "llava", data, tmp_path / "out", **chosen), capsys)
    assert code == 2 and fill(message, bases, data) in line


def test_images_need_a_tower(bases, data, tmp_path, capsys):
    code, line = code_and_error(flags(bases / "vicuna", data, tmp_path / "out"), capsys)
    assert code == 2 and "sample 0 has an image, but the model has no vision tower" in line


NOT_NEEDED = [
    {"data_path": "DATA/text.json", "image_folder": "/nowhere"},
    {"data_path": "DATA/absolute.json", "image_folder": "/nowhere"},
    {"eval_image_folder": "/nowhere"},  # without an evaluation
    {**EVALUATED, "eval_data_path": "DATA/text.json", "eval_image_folder": "/nowhere"},
]


@pytest.mark.parametrize("changes", NOT_NEEDED, ids=str)
def test_a_missing_image_folder_that_no_image_is_in_is_a_warning(data, tmp_path, caplog, changes):
    chosen = {name: fill(value, tmp_path, data) for name, value in changes.items()}
    with caplog.at_level(logging.WARNING):
        check_paths(parse_arguments(flags(tmp_path, data, tmp_path / "out", **chosen)))
    assert "there is no image folder /nowhere" in caplog.text


def test_text_is_trained_on_without_its_image_folder(bases, data, tmp_path):
    train_on(bases / "llava", data, tmp_path, data_path=data / "text.json", image_folder="/nowhere", max_steps=1)
    assert len(logged(tmp_path)) == 1
