"""lmms-eval's unmodified adapter gives the runner's answers; runs where LMMS_EVAL_PYTHON is an interpreter with it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

PYTHON = os.environ.get("LMMS_EVAL_PYTHON")


@pytest.mark.skipif(not PYTHON, reason="LMMS_EVAL_PYTHON names no interpreter with lmms-eval (docs/EVALUATION.md)")
def test_lmms_eval_gives_the_runners_answers() -> None:
    root = Path(__file__).parents[1]
    command = [str(PYTHON), "-m", "scripts.harness.lmms_eval_check", "--scenes", "2"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lmms-eval, batch size 1: 18 of 18 answers the same" in done.stdout
    assert "lmms-eval, batch size 4: 18 of 18 answers the same" in done.stdout
