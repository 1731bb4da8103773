"""Fixtures for tests of the benchmarks' shell scripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interpreter import start
from tests.llava.loading import loading_once
from tests.scripts.eval_scripts import Run, make_run


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An interpreter that the scripts start their commands in."""
    with start(tmp_path_factory.mktemp("interpreter")) as client, loading_once():
        yield client


@pytest.fixture
def run(python: Path, tmp_path: Path) -> Run:
    """Runs a script of scripts/v1_5/eval."""
    return make_run(python, tmp_path)
