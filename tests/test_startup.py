"""No program loads heavy libraries for its help or a wrong flag; servers without a model never load a model's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_command_lines import PROGRAMS

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "gradio", "pandas", "ray", "matplotlib", "scipy", "fastapi", "httpx", "uvicorn")

IMPORTS = """
import contextlib, importlib, io, sys
known = set()
for name in sys.argv[1].split():  # all in one process: the first that loads a library is named
    module = importlib.import_module(name)
    for flags in sys.argv[3:]:
        silence = io.StringIO()
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            module.main([flags])
    heavy = [each for each in sys.argv[2].split() if each in sys.modules and each not in known]
    print(name, *heavy)
    known.update(heavy)
"""
"""Imports modules, runs their `main` with each flag that is given, and prints the libraries that each loads first."""


def output(code: str, *arguments: str) -> list[str]:
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_help_and_a_wrong_flag_load_nothing_heavy() -> None:
    programs = [*PROGRAMS, "qlip.cli"]
    assert output(IMPORTS, " ".join(programs), " ".join(HEAVY), "--help", "--no-such-flag") == programs


LIGHT = ("qlip", "llava", "llava.serve.engine", "llava.model", "llava.mm_utils", "llava.utils", "llava.conversation")
SERVERS = (
    *("llava.serve.controller", "llava.serve.register_worker", "llava.serve.test_message"),
    *("llava.serve.workers.controller_app", "llava.serve.workers.protocol", "llava.serve.http.server"),
)
"""Those that need no model, and the modules that they import when they run."""
PICTURES = ("llava.eval.run.inputs.preparation", "llava.eval.run.shares", "llava.model.vision.preparer")
"""What the processes that prepare images import."""


@pytest.fixture(scope="module")
def loads() -> dict[str, set[str]]:
    """Those of `HEAVY` that each module loads in a new process that has imported only modules of its row before it."""
    rows = [[*LIGHT, *SERVERS], ["qlip.tools.show", *PICTURES]]
    lines = [line for names in rows for line in output(IMPORTS, " ".join(names), " ".join(HEAVY))]
    return {name: set(heavy) for name, *heavy in map(str.split, lines)}


@pytest.mark.parametrize("package", LIGHT)
def test_a_package_loads_nothing_heavy(loads: dict[str, set[str]], package: str) -> None:
    assert loads[package] == set()


@pytest.mark.parametrize("module", SERVERS)
def test_a_server_without_a_model_loads_no_models_library(loads: dict[str, set[str]], module: str) -> None:
    assert not loads[module] & {"torch", "transformers", "gradio", "pandas"}


def test_showing_a_quadtree_loads_torch_alone(loads: dict[str, set[str]]) -> None:
    assert loads["qlip.tools.show"] == {"torch"}


@pytest.mark.parametrize("module", PICTURES)
def test_a_process_that_prepares_images_loads_no_models_library(loads: dict[str, set[str]], module: str) -> None:
    assert not loads[module] & {"transformers", "gradio", "pandas", "scipy"}
