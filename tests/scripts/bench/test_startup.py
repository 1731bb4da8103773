"""The benchmark of starts: which commands it runs, what it measures of one, and what its table says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.bench import startup
from scripts.bench.startup import TORCH, Command, Cost, commands, main, programs, row, run_once

BURN = "import time\nwhile time.process_time() < {seconds}: pass\nheld = bytearray({megabytes} * 2**20)"


def test_every_program_is_measured(tmp_path: Path) -> None:
    listed = commands(tmp_path)
    names = [command.name for command in listed]
    assert len(set(names)) == len(names) and names[0] == TORCH
    assert {"controller", "qlip show", "llava --prompt", "image worker"} < set(names)
    for module in (
        "qlip",
        "llava.serve.cli",
        "llava.eval.model_vqa",
        "scripts.paper",
        "scripts.soak",
        "playground.train",
    ):
        assert module in programs() and f"{module} --help" in names


def test_the_targets_are_those_of_the_house(tmp_path: Path) -> None:
    found = {command.name: (command.seconds, command.ratio, command.megabytes) for command in commands(tmp_path)}
    assert found.pop(TORCH) == (None, None, None)
    assert found.pop("controller") == (0.6, None, 80)
    assert found.pop("qlip show") == (None, 1.3, None)
    assert found.pop("llava --prompt") == (None, 2.5, None)
    assert found.pop("image worker") == (None, 1.2, None)
    assert set(found.values()) == {(0.3, None, None)}


def test_a_start_costs_what_its_process_used() -> None:
    light = run_once(Command("light", ("-c", BURN.format(seconds=0, megabytes=0))))
    heavy = run_once(Command("heavy", ("-c", BURN.format(seconds=0.2, megabytes=int(light.megabytes) + 100))))
    assert 0 < light.seconds < heavy.seconds and heavy.seconds >= 0.2
    assert 95 < heavy.megabytes - light.megabytes < 150


def test_a_command_that_fails_is_named_with_its_last_words() -> None:
    with pytest.raises(RuntimeError, match="broken failed: out of luck"):
        run_once(Command("broken", ("-c", "import sys; sys.exit('out of luck')")))


def test_a_row_shows_every_target_and_which_was_missed() -> None:
    command = Command("x", (), seconds=0.3, ratio=1.2, megabytes=80)
    targets = "0.3 s, 1.2 x import torch (missed), 80 MB (missed)"
    assert row(command, Cost(0.25, 90.4), 0.2) == f"| x | 0.25 | 1.25 | 90 | {targets} |"
    assert row(Command("y", ()), Cost(1.0, 10.0), 2.0) == "| y | 1.00 | 0.50 | 10 | - |"


def test_the_command_prints_medians_and_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [Command(TORCH, ()), Command("b", (), seconds=2.5)]
    seconds = {TORCH: iter([1.0, 9.0, 2.0]), "b": iter([3.0, 2.0, 4.0])}
    monkeypatch.setattr(startup, "commands", lambda folder: listed)
    monkeypatch.setattr(startup, "run_once", lambda command: Cost(next(seconds[command.name]), 50.0))
    assert main(["--repeats", "3", "--out", str(tmp_path / "out.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [f"| {TORCH} | 2.00 | 1.00 | 50 | - |", "| b | 3.00 | 1.50 | 50 | 2.5 s (missed) |"]
    assert json.loads((tmp_path / "out.json").read_text())["b"] == {"seconds": 3.0, "megabytes": 50.0}
