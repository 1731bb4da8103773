"""What the model flags of a command name is checked before anything is loaded: one line and exit code 2."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import llava.utils
import qlip.cli
from llava.eval import (
    model_vqa,
    model_vqa_loader,
    model_vqa_mmbench,
    model_vqa_science,
    ray_batch,
    run_llava,
    vstar_likelihood,
)
from llava.eval.sweep import command as sweep
from llava.model.builder import load_pretrained_model
from llava.serve import cli, gradio_web_server, model_worker, openai_api
from playground import evaluate
from scripts.harness import lmms_eval_check
from tests.llava.checkpoints import (
    make_llava_checkpoint,
    transformers_model,
    write_config,
    write_language_model,
)

FILES = ["--question-file=absent.jsonl", "--image-folder=absent"]
COMMANDS: dict[str, tuple[Callable[[list[str]], int], list[str]]] = {
    "llava": (cli.main, []),
    "run_llava": (lambda flags: run_as("run_llava", run_llava.main, flags), ["--query=What?"]),
    "model_vqa": (model_vqa.main, FILES),
    "model_vqa_loader": (model_vqa_loader.main, FILES),
    "model_vqa_mmbench": (model_vqa_mmbench.main, FILES),
    "model_vqa_science": (model_vqa_science.main, FILES),
    "vstar_likelihood": (vstar_likelihood.main, [*FILES, "--answers-file=absent.jsonl"]),
    "ray_batch": (ray_batch.main, FILES),
    "sweep": (sweep.main, [*FILES, "--out=absent"]),
    "qlip sweep": (lambda flags: qlip.cli.main(["sweep", *flags]), [*FILES, "--out=absent"]),
    "gradio_web_server": (gradio_web_server.main, []),
    "model_worker": (model_worker.main, []),
    "openai_api": (openai_api.main, []),
}


def run_as(name: str, main: Callable[[], int], flags: list[str]) -> int:
    """Runs a command that reads its flags from the process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *flags])
        return main()


@pytest.fixture(params=COMMANDS)
def refuses(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Callable[..., str]:
    """Runs a command that must refuse; its one line comes back."""
    command, own = COMMANDS[request.param]

    def load(*args: Any, **options: Any) -> None:
        pytest.fail("the model was loaded")

    def run(*flags: str) -> str:
        monkeypatch.setattr("llava.model.builder.load_pretrained_model", load)
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        assert command([*own, *flags]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        [line] = [line for line in captured.err.splitlines() if "embedded demo" not in line and "  llava" not in line]
        assert "error: " in line
        return line

    return run


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "gpu", "meta", ""])
def test_a_device_that_the_machine_lacks_is_refused(monkeypatch, refuses, device):
    monkeypatch.setattr(llava.utils, "devices", lambda: ["cpu"])
    assert refuses(f"--device={device}").endswith(f"error: --device is {device!r}, but this machine has cpu only")


def test_a_language_model_alone_is_refused(tmp_path, refuses):
    model = write_language_model(tmp_path / "vicuna", transformers_model())
    line = refuses(f"--model-path={model}")
    assert f"error: {model} has no vision tower, it is a language model alone; give a LLaVA checkpoint" in line


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"qlip": {"max_tokens": 96.5}}, "max_tokens is 96.5; it must be an integer"),
        ({"qlip": {"alpha": None}}, "alpha is None; it must be a number >= 0"),
        ({"image_aspect_ratio": "anyres"}, "image_grid_pinpoints is None; allowed are a list of (width, height)"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(tmp_path, refuses, config, message):
    model = tmp_path / "model"
    write_config(model, **config)
    assert f"error: {model / 'config.json'}: {message}" in refuses(f"--model-path={model}")


@pytest.mark.parametrize("main", [evaluate.main, lmms_eval_check.main], ids=["playground.evaluate", "lmms_eval_check"])
def test_scripts_refuse_it_as_a_wrong_flag(monkeypatch, capsys, main):
    monkeypatch.setattr(llava.utils, "devices", lambda: ["cpu"])
    with pytest.raises(SystemExit, match="2"):
        main(["--device=cuda"])
    assert "argument --device: it is 'cuda', but this machine has cpu only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("accelerator", "count", "names"),
    [(None, 0, ["cpu"]), ("mps", 1, ["cpu", "mps"]), ("cuda", 2, ["cpu", "cuda:0", "cuda:1"])],
)
def test_devices_are_those_that_torch_finds(monkeypatch, accelerator, count, names):
    found = None if accelerator is None else torch.device(accelerator)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    assert llava.utils.devices() == names
    for name in [*names, *({"cuda"} if accelerator == "cuda" else ())]:
        llava.utils.check_device(name)
    with pytest.raises(ValueError, match=f"--device is 'cuda:7', but this machine has {', '.join(names)} only"):
        llava.utils.check_device("cuda:7")


def test_llavas_default_device_means_the_cpu_where_there_is_no_gpu(tmp_path, monkeypatch, caplog):
    """Python callers who name no device, or "cuda" as LLaVA does by default, get a model and a warning."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(llava.utils, "devices", lambda: ["cpu"])
    folder = str(make_llava_checkpoint(tmp_path))
    for options in ({}, {"device": "cuda"}, {"device_map": "auto"}, {"device_map": None}):
        with caplog.at_level(logging.WARNING):
            assert load_pretrained_model(folder, **options)[1].device == torch.device("cpu")
        assert "this machine has no CUDA device: loading the model on the CPU" in caplog.text
        caplog.clear()
    for options, name in (
        ({"device": "cuda:7"}, "device is 'cuda:7'"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"device_map": "cuda:0"}, "device_map is 'cuda:0'"),
        ({"device_map": "cuda"}, "device_map is 'cuda'"),
    ):
        with pytest.raises(ValueError, match=f"{name}, but this machine has cpu only"):
            load_pretrained_model(folder, **options)
