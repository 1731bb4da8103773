"""lmms-eval's unmodified adapter gives the runner's answers, and its scores are ours.

Runs where LMMS_EVAL_PYTHON names an interpreter that has it: see docs/EVALUATION.md.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

PYTHON = os.environ.get("LMMS_EVAL_PYTHON")


pytestmark = pytest.mark.skipif(not PYTHON, reason="LMMS_EVAL_PYTHON names no interpreter with lmms-eval")


def run(module: str, *flags: str) -> str:
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [str(PYTHON), "-m", f"scripts.harness.{module}", *flags]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_lmms_eval_gives_the_runners_answers() -> None:
    said = run("lmms_eval_check", "--scenes", "2")
    assert "lmms-eval, batch size 1: 18 of 18 answers the same" in said
    assert "lmms-eval, batch size 4: 18 of 18 answers the same" in said


def test_lmms_evals_scores_of_made_up_answers_are_ours() -> None:
    assert "MMBench, CircularEval: 71.0000, lmms-eval 71.0000" in run("lmms_eval_scores")
