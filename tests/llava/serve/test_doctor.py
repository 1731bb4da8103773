"""`llava doctor`: what it reports, what counts as a problem, and what it never prints."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers

from llava.serve import cli, doctor


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return doctor.build_report("cpu")


@pytest.fixture
def no_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the self-test out, for speed."""
    monkeypatch.setattr(doctor, "ask_demo", lambda device, problems: None)


def printed(capsys: pytest.CaptureFixture[str], code: int, *flags: str) -> dict[str, Any]:
    assert cli.main(["doctor", "--json", *flags]) == code
    return json.loads(capsys.readouterr().out)


def test_versions_memory_and_cores_are_this_machines(report: dict[str, Any]) -> None:
    required = report["packages"]["required"]
    assert (required["torch"], required["transformers"]) == (torch.__version__, transformers.__version__)
    assert report["torch"]["version"] == torch.__version__
    assert report["system"]["memory_gib"] == pytest.approx(psutil.virtual_memory().total / 2**30, abs=0.1)
    assert report["system"]["cores"] == len(psutil.Process().cpu_affinity())
    assert report["packages"]["train"].keys() == {"tensorboard"}  # peft is required anyway
    assert report["packages"]["beside"].keys() == {"flash-attn", "open-clip-torch", "timm", "vllm"}
    assert "dev" not in report["packages"]


def test_the_embedded_model_answers_both_ways(report: dict[str, Any]) -> None:
    tested = report["self_test"]
    assert report["problems"] == []
    assert tested["clip"]["right"] and tested["qlip"]["right"]
    assert tested["clip"]["tokens"] == 64 != tested["qlip"]["tokens"]


def test_the_text_has_every_part(report: dict[str, Any]) -> None:
    lines = doctor.format_report(report).splitlines()
    begin = ["llava-qlip", "python", "machine", "torch", "device", "required", "train", "self-test", "clip", "qlip"]
    assert set(begin) <= {line.split()[0] for line in lines}
    assert lines[-1] == "no problems found"


def test_a_wrong_answer_and_a_device_that_is_not_there_are_problems(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "SHAPES", frozenset({"a green cross"}))
    problems = printed(capsys, 1, "--device", "cpu")["problems"]
    assert [problem.partition(" answered")[0] for problem in problems] == ["self-test: clip", "self-test: qlip"]
    assert all(problem.endswith("3-large-shapes.png shows a green cross") for problem in problems)
    (problem,) = printed(capsys, 1, "--device", "cuda:77")["problems"]
    assert "--device is 'cuda:77', but this machine has cpu" in problem


def test_a_library_that_cannot_be_imported_is_reported_beside_the_rest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # its import then fails
    report = printed(capsys, 1)
    (problem,) = report["problems"]
    assert problem.startswith("torch: ModuleNotFoundError: ")
    assert report["torch"] is report["self_test"] is None
    assert report["packages"]["required"]["transformers"] == transformers.__version__


@pytest.mark.usefixtures("no_test")
def test_packages_that_are_missing_or_too_old_are_problems_unless_they_are_optional(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ["torch>=2", "numpy>=99", "no-such-package>=1", 'psutil>=99; extra == "bench"', 'gone; extra == "train"']
    monkeypatch.setattr(doctor, "requires", lambda name: wanted)
    report = printed(capsys, 1)
    found = {name: doctor.installed(name) for name in ("numpy", "psutil")}
    assert report["problems"] == [
        f"packages: numpy is {found['numpy']}; numpy>=99 is required",
        "packages: no-such-package>=1 is required and not installed",
        f"packages: psutil is {found['psutil']}; psutil>=99 is required",
    ]
    assert report["packages"]["train"] == {"gone": None}


@pytest.mark.usefixtures("no_test")
def test_neither_environment_variables_nor_the_home_folder_are_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = str(Path(doctor.__file__).parents[3])
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(doctor, "describe_torch", lambda: os.listdir(f"{home}/nowhere"))
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert home not in out and "hf_secret" not in out
    assert "torch: FileNotFoundError: ~/nowhere: no such file or directory" in out
    assert f"~{os.sep}{Path(doctor.__file__).parents[2].name}" in out


def test_a_wrong_flag_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["doctor", "--model-path", "m"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "llava doctor: error: unrecognized arguments: --model-path\n"
