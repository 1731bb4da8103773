"""Where a CPU's 4-bit kernels multiply in blocks, a model that does not fit them is refused before it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from llava.model.builder import load_pretrained_model
from llava.model.loading import quantization
from llava.serve.cli import main
from tests.llava.checkpoints import make_llava_checkpoint


@pytest.fixture(params=[True, False], ids=["in blocks", "of any width"])
def in_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A machine of either kind, whichever this is."""
    monkeypatch.setattr(quantization, "multiplies_in_blocks", lambda: request.param)
    return request.param


def test_the_embedded_model_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quantization, "multiplies_in_blocks", lambda: True)
    assert main(["--load-4bit", "--device", "cpu", "--prompt", "What is in the picture?"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "q_proj has 160 and 160" in error and "--load-8bit" in error


def test_widths_that_fit_are_taken_everywhere(tmp_path: Path, in_blocks: bool) -> None:
    model = load_pretrained_model(str(make_llava_checkpoint(tmp_path)), device="cpu", load_4bit=True)[1]
    assert type(model.model.layers[0].mlp.down_proj).__name__ == "Linear4bit"


def test_on_another_device_nothing_is_checked(in_blocks: bool) -> None:
    config = LlamaConfig(hidden_size=48, intermediate_size=100, num_attention_heads=4)
    quantization.check_four_bit(config, {"": "cuda:0"})
    if not in_blocks:
        quantization.check_four_bit(config, {"": "cpu"})


def test_the_layers_are_those_of_llama() -> None:
    sizes = {"hidden_size": 48, "intermediate_size": 100, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**sizes, head_dim=20, num_hidden_layers=1, vocab_size=10)
    with torch.device("meta"):
        modules = LlamaForCausalLM(config).model.named_modules()
    expected = {name.split(".")[-1]: (m.in_features, m.out_features) for name, m in modules if isinstance(m, nn.Linear)}
    assert {name: (inputs, outputs) for name, inputs, outputs in quantization.linear_layers(config)} == expected
