"""No program loads a model's libraries for its help or a wrong flag, and those without a model never do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.test_command_lines import PROGRAMS

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "gradio", "pandas", "ray", "matplotlib", "scipy", "fastapi", "httpx", "uvicorn")

HELP = """
import contextlib, importlib, io, os, sys
for name in sys.argv[1].split():
    if os.fork():  # each program in a process of its own that holds nothing yet
        os.wait()
        continue
    main = importlib.import_module(name).main
    for flags in (["--help"], ["--no-such-flag"]):
        silence = io.StringIO()
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            main(flags)
    heavy = [module for module in sys.argv[2].split() if module in sys.modules]
    print(name, "loads", *heavy or ["nothing"], flush=True)
    os._exit(0)
"""


def output(code: str, *arguments: str) -> list[str]:
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def loaded(imports: str, heavy: Sequence[str] = HEAVY) -> set[str]:
    """Which of `heavy` a fresh process holds after some imports."""
    (found,) = output(f"import sys\n{imports}\nprint(*(name for name in {tuple(heavy)!r} if name in sys.modules))")
    return set(found.split())


def test_help_and_a_wrong_flag_load_nothing_heavy() -> None:
    programs = [*PROGRAMS, "qlip.cli"]
    assert output(HELP, " ".join(programs), " ".join(HEAVY)) == [f"{name} loads nothing" for name in programs]


@pytest.mark.parametrize("package", ["qlip", "llava", "llava.serve.engine"])
def test_a_package_loads_nothing_heavy(package: str) -> None:
    assert loaded(f"import {package}") == set()


@pytest.mark.parametrize("module", ["controller", "register_worker", "test_message"])
def test_a_server_without_a_model_loads_no_models_library(module: str) -> None:
    """Nor do the modules that its functions import when they run."""
    used = (
        "llava.serve.workers.controller_app",
        "llava.serve.workers.calls",
        "llava.serve.http.server",
        "llava.images",
    )
    imports = f"import llava.serve.{module}, {', '.join(used)}"
    assert loaded(imports, ("torch", "transformers", "gradio", "pandas")) == set()
