"""Runs that do not continue what is in their folder, and what the command says of it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from llava.train.resume import check_same_step, check_whole
from tests.llava.train.handwritten import write_data
from tests.llava.train.runs import code_and_error, flags, train_on


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, "iitiittit")
    return folder


PROJECTOR = {"tune_mm_mlp_adapter": True, "save_strategy": "steps", "save_steps": 1, "max_steps": 1}
LORA = {"lora_enable": True, "save_strategy": "steps", "save_steps": 1, "max_steps": 1}


@pytest.fixture(scope="module")
def projector_run(bases, data, tmp_path_factory) -> Path:
    """The folder of a run of `PROJECTOR`; tests that change it take a copy."""
    out = tmp_path_factory.mktemp("projector")
    train_on(bases / "llava", data, out, **PROJECTOR)
    return out


@pytest.fixture(scope="module")
def lora_run(bases, data, tmp_path_factory) -> Path:
    """The folder of a run of `LORA`."""
    out = tmp_path_factory.mktemp("lora")
    train_on(bases / "llava", data, out, **LORA)
    return out


def test_a_checkpoint_of_another_mode_is_not_continued(bases, data, lora_run, tmp_path, capsys):
    code, line = code_and_error(flags(bases / "llava", data, lora_run), capsys)
    assert code == 2 and "checkpoint-1 is a checkpoint of training LoRA, but these flags do not" in line
    code, line = code_and_error(flags(bases / "llava", data, tmp_path / "o", resume_from_checkpoint="gone"), capsys)
    assert code == 2 and "--resume_from_checkpoint gone is not a folder" in line


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ({"lora_alpha": 64}, "--lora_alpha is 64, but .*checkpoint-1 was trained with 16"),
        ({"lora_r": 4}, "--lora_r is 4"),
    ],
)
def test_adapters_are_not_continued_with_another_rank_or_scale(bases, data, lora_run, capsys, flag, words):
    code, line = code_and_error(flags(bases / "llava", data, lora_run, **LORA, **flag), capsys)
    assert code == 2 and re.search(words, line)


def test_a_checkpoint_without_an_optimizers_state_is_not_continued(bases, data, tmp_path, capsys):
    train_on(bases / "llava", data, tmp_path / "out", **PROJECTOR, save_only_model=True)
    code, line = code_and_error(flags(bases / "llava", data, tmp_path / "out", **PROJECTOR), capsys)
    assert code == 2 and "checkpoint-1 has no state of an optimizer, as --save_only_model leaves it" in line


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("scheduler.pt", Path.unlink, "checkpoint-1 lacks scheduler.pt, without which"),
        ("trainer_state.json", Path.unlink, "checkpoint-1 holds a part of a checkpoint: it has no trainer_state.json"),
        ("trainer_state.json", cut, "checkpoint-1/trainer_state.json is not valid JSON"),
        ("optimizer.pt", cut, "checkpoint-1/optimizer.pt is damaged or incomplete"),
        ("mm_projector.bin", cut, "checkpoint-1/mm_projector.bin is damaged or incomplete"),
    ],
)
def test_an_incomplete_checkpoint_is_not_continued(bases, data, projector_run, tmp_path, capsys, name, change, words):
    shutil.copytree(projector_run, tmp_path / "out")
    change(tmp_path / "out" / "checkpoint-1" / name)
    code, line = code_and_error(flags(bases / "llava", data, tmp_path / "out", **PROJECTOR), capsys)
    assert code == 2 and words in line


def test_files_that_training_does_not_read_stop_no_resume(projector_run, tmp_path):
    shutil.copytree(projector_run, tmp_path / "out")
    for name in ("._optimizer.pt", "tokenizer.bin", "extra.pt"):
        (tmp_path / "out" / "checkpoint-1" / name).write_bytes(b"Mac")
    check_whole(tmp_path / "out" / "checkpoint-1")


def test_processes_continue_from_one_checkpoint():
    check_same_step(["checkpoint-2", "checkpoint-2"])
    with pytest.raises(ValueError, match="different checkpoints: checkpoint-2, None; copy the last one"):
        check_same_step(["checkpoint-2", None])


def test_a_projector_or_lora_checkpoint_is_no_start(data, lora_run, tmp_path, capsys):
    shutil.copytree(lora_run, tmp_path / "lora")  # the name decides
    code, line = code_and_error(flags(tmp_path / "lora", data, tmp_path / "out"), capsys)
    assert code == 2 and "is a lora checkpoint, not a whole model; merge it" in line
