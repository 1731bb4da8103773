"""LoRA checkpoints that lack something, or say it wrongly, are refused by the name of the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.model.builder import load_pretrained_model
from scripts import merge_lora_weights
from tests.llava.checkpoints import llava_state, make_llava_checkpoint, transformers_model, write_config
from tests.llava.model.test_builder_lora import LANGUAGE, Lora


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_llava_checkpoint(tmp_path_factory.mktemp("llava"))


@pytest.fixture
def lora() -> Lora:
    return Lora(llava_state(transformers_model()), LANGUAGE)


def load(folder: Path, base: Path):
    return load_pretrained_model(str(folder), str(base), device="cpu")[1]


@pytest.mark.parametrize("beside", [False, True], ids=["nowhere", "beside the adapter"])
def test_modules_that_were_saved_whole_must_be_there(tmp_path, whole, lora, beside):
    """They would have kept the base's weights. LLaVA's training writes them beside the adapter."""
    folder = lora.write(tmp_path, modules_to_save=["lm_head", "embed_tokens"])
    state = llava_state(transformers_model())
    saved = {name: state[name] + 0.3 for name in ("lm_head.weight", "model.embed_tokens.weight")}
    if not beside:
        saved.pop("model.embed_tokens.weight")
    torch.save({f"base_model.model.{name}": value for name, value in saved.items()}, folder / "non_lora_trainables.bin")
    if beside:
        assert torch.equal(load(folder, whole).lm_head.weight, saved["lm_head.weight"])
        return
    with pytest.raises(ValueError, match=r"safetensors lacks 'model.embed_tokens.weight', .* \(modules_to_save\)"):
        load(folder, whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_alpha": "8"}, "lora_alpha is '8'; it must be a positive number"),
        ({"lora_alpha": None}, "lora_alpha is None; it must be a positive number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan; it must be a positive number"),
        ({"alpha_pattern": {"q_proj": "1"}}, "lora_alpha is '1'"),
        ({"r": "4"}, "r is '4'; it must be a positive integer"),
        ({"rank_pattern": {"q_proj": 2.5}}, "r is 2.5; it must be a positive integer"),
    ],
)
def test_ranks_and_scales_are_numbers(tmp_path, whole, lora, change, message):
    with pytest.raises(ValueError, match=f"adapter_config.json: {message}"):
        load(lora.write(tmp_path, **change), whole)


@pytest.mark.parametrize("rename", [lambda name: name.removeprefix("base_model.model."), lambda name: f"model.{name}"])
def test_names_that_peft_does_not_write_are_refused(tmp_path, whole, lora, rename):
    file = lora.write(tmp_path) / "adapter_model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ValueError, match=r"safetensors calls a matrix '.*'; peft's own files begin with 'base_model"):
        load(tmp_path, whole)


@pytest.mark.parametrize("content", [b"Repository not found", b"abc", b"a", b".", b"\x80\x02}q"])
def test_bytes_of_something_else_are_damage(tmp_path, whole, lora, content):
    folder = lora.write(tmp_path)
    (folder / "non_lora_trainables.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"non_lora_trainables.bin (is|holds)"):
        load(folder, whole)


def test_an_adapter_without_its_configuration_is_no_whole_model(tmp_path, whole, lora, capsys):
    folder = lora.write(tmp_path / "lora")
    (folder / "adapter_config.json").unlink()
    message = "has adapter_model.safetensors but no adapter_config.json, which says how to add it to its base"
    with pytest.raises(FileNotFoundError, match=message):
        load(folder, whole)
    flags = ["--model-path", str(folder), "--model-base", str(whole), "--save-model-path", str(tmp_path / "out")]
    assert merge_lora_weights.main(flags) == 2
    assert message in capsys.readouterr().err


def test_a_base_that_is_a_lora_is_named_before_its_tokenizer_is_missed(tmp_path, lora):
    first, second = lora.write(tmp_path / "first"), lora.write(tmp_path / "second")
    with pytest.raises(ValueError, match="second, given as the base model, is a lora checkpoint; it must be a whole"):
        load(first, second)


def test_a_vocabulary_that_the_base_lacks_is_told(tmp_path, whole, lora, caplog):
    """More rows than training adds: probably another base was trained on."""
    rows = json.loads((whole / "config.json").read_text())["vocab_size"]
    folder = lora.write(tmp_path)
    for more in (4, 5):
        write_config(folder, vocab_size=rows + more)
        load(folder, whole)
        told = f"has a vocabulary of {rows + more}, its base {whole} of {rows}" in caplog.text
        assert told == (more == 5)
