"""A sweep over priors tells their files by what is in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llava.eval.sweep import command
from llava.eval.sweep.grid import is_current
from playground import scenes
from qlip import CoordinateMLP
from tests.llava.eval.sweep.test_command import flags, read


def test_a_prior_that_was_written_anew_is_measured_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prior, material = tmp_path / "prior.safetensors", tmp_path / "material"
    assert scenes.main(["--out", str(material), "--n", "1", "--preset", "detail"]) == 0
    settings = ["--set", "interpolation=mlp", f"mlp={prior}", "mlp_residual=false", "--no-clip", "--limit", "2"]
    arguments = flags(material, tmp_path / "out", *settings, "--max-new-tokens", "1")
    for seed, done in ((0, 0), (0, 1), (1, 0), (1, 1)):
        torch.manual_seed(seed)
        CoordinateMLP(160, hidden=16, depth=2).save(prior)
        assert command.main(arguments) == 0
        assert f"1 cells, {done} of them already done" in capsys.readouterr().err
    assert len({record["prior"] for record in read(tmp_path / "out")}) == 2
    prior.unlink()
    records = read(tmp_path / "out")
    assert all(is_current(record) for record in records)  # what it was cannot be told
