"""A run that diverges logs it, ends in an error, and saves no weights that are not finite."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from llava.train.finite import check_finite, find_non_finite
from llava.train.llava_trainer import LLaVATrainer
from tests.llava.train.handwritten import write_data
from tests.llava.train.runs import code_and_error, flags, logged, train_on

DIVERGING = {"learning_rate": 1e37, "per_device_train_batch_size": 2, "max_steps": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, "iititi")
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [0.0, -1e4, math.nan, math.inf, -math.inf])
def test_a_parameter_is_found_where_torch_says_that_it_is_not_finite(value: float, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(dtype)
    with torch.no_grad():
        model[1].weight[1, 2] = value
    is_finite = all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
    assert find_non_finite(model) == (None if is_finite else "1.weight")
    model[1].requires_grad_(False)
    assert find_non_finite(model) is None  # what is frozen comes from the base


def test_a_process_that_holds_no_weights_finds_none() -> None:
    """As FSDP leaves one whose shards of small parameters are empty."""
    assert find_non_finite(nn.ParameterList([nn.Parameter(torch.empty(0))])) is None
    assert find_non_finite(nn.Identity()) is None


def test_a_sharded_parameter_is_made_whole_to_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeRO-3 leaves a parameter without elements outside of DeepSpeed's context."""

    @contextmanager
    def gathered(parameters: list[Any]) -> Iterator[None]:
        for parameter in parameters:
            parameter.data = parameter.whole
        yield
        for parameter in parameters:
            parameter.data = torch.empty(0)

    module: Any = ModuleType("deepspeed")
    module.zero = SimpleNamespace(GatheredParameters=gathered)
    monkeypatch.setitem(sys.modules, "deepspeed", module)
    model = nn.Linear(2, 2)
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id, parameter.whole, parameter.data = number, torch.ones(2), torch.empty(0)
    assert find_non_finite(model) is None
    model.bias.whole = torch.tensor([1.0, math.nan])
    assert find_non_finite(model) == "bias"


def test_all_processes_stop_where_one_has_found_something(tmp_path: Path) -> None:
    words = f"after step 7 a.weight has values that are not finite.*the last checkpoint, {tmp_path / 'checkpoint-5'}, s"
    with pytest.raises(ValueError, match=words):
        check_finite(nn.Linear(1, 1), 7, [tmp_path / "checkpoint-5"], lambda mine: [mine, "a.weight"])
    check_finite(nn.Linear(1, 1), 7, [], lambda mine: [mine, None])


@pytest.mark.parametrize("mode", [{}, {"tune_mm_mlp_adapter": True}, {"lora_enable": True}], ids=str)
def test_the_last_finite_checkpoint_stays(bases: Path, data: Path, tmp_path: Path, capsys, mode) -> None:
    chosen = {**DIVERGING, **mode, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    code, line = code_and_error(flags(bases / "llava", data, tmp_path, **chosen), capsys)
    assert code == 2
    (kept,) = tmp_path.glob("checkpoint-*")
    step, name = re.search(r"after step (\d+) (\S+) has values", line).groups()
    assert kept.name == f"checkpoint-{int(step) - 1}" and f"the last checkpoint, {kept}, stays" in line
    assert "lower --learning_rate" in line.lower() and "weight" in name
    assert not list(tmp_path.glob("*.safetensors")) + list(tmp_path.glob("*.bin"))


def test_a_loss_that_is_not_a_number_is_logged_as_such_and_ends_the_run(bases, data, tmp_path, capsys) -> None:
    """Without checkpoints, whose writing would end it."""
    from llava.train.train import main

    assert main(flags(bases / "llava", data, tmp_path, **DIVERGING)) == 2
    output = capsys.readouterr()
    losses = [float(text) for text in re.findall(r"'loss': '(\S+)'", output.out)]
    assert math.isnan(losses[-1]) and len(losses) < DIVERGING["max_steps"]
    assert "no checkpoint was saved before" in output.err


def test_a_final_model_that_is_not_finite_is_not_written(bases, data, tmp_path, capsys) -> None:
    chosen = {**DIVERGING, "max_steps": 2, "logging_steps": 9}  # ends before its loss shows anything
    code, line = code_and_error(flags(bases / "llava", data, tmp_path, **chosen), capsys)
    assert code == 2 and "training has diverged: after step 2 " in line
    assert [file.name for file in tmp_path.iterdir()] == ["trainer_state.json"]


STILL = {"learning_rate": 0, "per_device_train_batch_size": 1, "max_steps": 5}


@pytest.fixture(scope="module")
def losses(bases: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Those of five steps that change nothing."""
    out = tmp_path_factory.mktemp("still")
    train_on(bases / "llava", data, out, **STILL)
    return logged(out)


@pytest.mark.parametrize(
    ("value", "every", "lines", "mean"),
    [
        (math.nan, 1, [[0], [1], [2], [3], [4]], [0, 2, 3, 4]),
        (math.inf, 2, [[0, 1], [2, 3]], [2, 3, 4]),  # the last step has no line
        (-math.inf, 5, [[0, 1, 2, 3, 4]], []),
    ],
)
def test_a_loss_that_is_not_finite_is_in_one_line_alone(
    bases, data, tmp_path, losses, monkeypatch, value, every, lines, mean
):
    """As where a batch overflows and the scaler of `--fp16` skips its step: the weights stay finite."""
    compute = LLaVATrainer.training_step

    def overflow_once(self: LLaVATrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = compute(self, *args, **kwargs)
        return torch.full_like(loss, value) if self.state.global_step == 1 else loss

    monkeypatch.setattr(LLaVATrainer, "training_step", overflow_once)
    train_on(bases / "llava", data, tmp_path, **STILL, logging_steps=every)
    overflowing = [loss if step != 1 else value for step, loss in enumerate(losses)]
    wanted = [sum(overflowing[step] for step in line) / len(line) for line in lines]
    assert logged(tmp_path) == pytest.approx(wanted, rel=1e-5, nan_ok=True)
    (found,) = logged(tmp_path, "train_loss")
    assert found == pytest.approx(np.mean([losses[step] for step in mean]) if mean else math.nan, rel=1e-5, nan_ok=True)
