"""Loss curves: read from any run's log, thinned to a readable number of points, drawn as a figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.train.curve import main, make_curve, read_log

HISTORY = [
    {"step": 1, "epoch": 0.1, "loss": 4.0, "learning_rate": 1e-3, "grad_norm": 1.5},
    {"step": 2, "epoch": 0.2, "loss": 2.0},
    {"step": 2, "epoch": 0.2, "eval_loss": 2.5, "eval_runtime": 1.0},
    {"step": 2, "train_runtime": 3.0, "train_loss": 3.0},
]


def write_state(folder: Path, history: Any = HISTORY) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 2, "log_history": history}))
    return folder


def test_a_log_holds_the_losses_of_training_and_evaluation(tmp_path):
    log = read_log(write_state(tmp_path / "run"))
    assert log.name == "run"
    assert log.training == [(1, 4.0), (2, 2.0)]
    assert log.evaluation == [(2, 2.5)]


def test_a_run_without_an_end_is_read_from_its_last_checkpoint(tmp_path):
    for step in (9, 10):
        write_state(tmp_path / f"checkpoint-{step}", [{"step": step, "loss": 1.0}])
    (tmp_path / "checkpoint-11").mkdir()  # killed before the state was written
    assert read_log(tmp_path).training == [(10, 1.0)]
    write_state(tmp_path)
    assert len(read_log(tmp_path).training) == 2


@given(st.lists(st.floats(0, 10), min_size=1, max_size=200), st.integers(1, 50))
def test_a_curve_is_short_and_keeps_mean_and_extremes(losses, most):
    curve = make_curve("training", list(enumerate(losses)), most)
    assert len(curve.x) <= most
    assert sorted(curve.x) == list(curve.x)
    if len(losses) <= most:
        assert list(curve.y) == losses and curve.low is None
    else:
        assert min(curve.low) == min(losses) and max(curve.high) == max(losses)
        assert all(
            low - 1e-9 <= mean <= high + 1e-9 for low, mean, high in zip(curve.low, curve.y, curve.high, strict=True)
        )


def test_the_command_draws_a_panel_for_each_run(tmp_path, capsys):
    runs = [str(write_state(tmp_path / name)) for name in ("stage-1", "stage-2")]
    assert main([*runs, "--out", str(tmp_path / "loss.svg")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'loss.svg'}\n"
    figure = (tmp_path / "loss.svg").read_text()
    assert ">stage-1</text>" in figure and ">stage-2</text>" in figure


@pytest.mark.parametrize(
    ("history", "message"),
    [([], "holds no loss"), ([{"step": "x", "loss": 1}], "not a trainer_state.json"), (3, "not a trainer_state.json")],
)
def test_a_log_without_losses_is_refused_by_name(tmp_path, capsys, history, message):
    assert main([str(write_state(tmp_path / "run", history)), "--out", str(tmp_path / "loss.svg")]) == 2
    assert message in (line := capsys.readouterr().err) and str(tmp_path / "run") in line


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert main([str(tmp_path), "--out", str(tmp_path / "loss.svg")]) == 2
    assert f"{tmp_path} has no trainer_state.json" in capsys.readouterr().err
