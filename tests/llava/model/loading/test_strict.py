"""Weights that load in no time show no progress bar; larger ones show transformers' own."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from llava.model.loading import strict
from llava.model.loading.strict import read_pretrained, weights_size


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).save_pretrained(folder)
    return folder


def test_only_large_weights_show_a_bar(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers_logging.enable_progress_bar()
    hook = transformers_logging.set_tqdm_hook(None)
    capfd.readouterr()
    read_pretrained(LlamaForCausalLM, folder)
    assert "Loading weights" not in capfd.readouterr().err
    monkeypatch.setattr(strict, "MIN_BAR_BYTES", 1)
    read_pretrained(LlamaForCausalLM, folder)
    assert "Loading weights" in capfd.readouterr().err
    transformers_logging.set_tqdm_hook(hook)


def test_the_size_of_weights_is_that_of_their_files(folder: Path) -> None:
    assert weights_size(folder) == (folder / "model.safetensors").stat().st_size
    assert weights_size("openai/clip-vit-large-patch14-336") is None
