"""No program loads heavy libraries for its help or a wrong flag; servers without a model never load a model's."""

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
import argparse, asyncio, contextlib, dataclasses, importlib, io, json, os, pathlib, subprocess, sys, typing
for name in sys.argv[1].split():
    if os.fork():  # each program in a separate process, which holds a part of the standard library and nothing else
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
    """Lists those of `heavy` that a new process holds after some imports."""
    (found,) = output(f"import sys\n{imports}\nprint(*(name for name in {tuple(heavy)!r} if name in sys.modules))")
    return set(found.split())


def test_help_and_a_wrong_flag_load_nothing_heavy() -> None:
    programs = [*PROGRAMS, "qlip.cli"]
    assert output(HELP, " ".join(programs), " ".join(HEAVY)) == [f"{name} loads nothing" for name in programs]


LIGHT = ("qlip", "llava", "llava.serve.engine", "llava.model", "llava.mm_utils", "llava.utils", "llava.conversation")


@pytest.mark.parametrize("package", LIGHT)
def test_a_package_loads_nothing_heavy(package: str) -> None:
    assert loaded(f"import {package}") == set()


@pytest.mark.parametrize("module", ["controller", "register_worker", "test_message"])
def test_a_server_without_a_model_loads_no_models_library(module: str) -> None:
    """Nor do the modules that it imports when it runs."""
    used = ("llava.serve.workers.controller_app", "llava.serve.workers.protocol", "llava.serve.http.server")
    imports = f"import llava.serve.{module}, {', '.join(used)}"
    assert loaded(imports, ("torch", "transformers", "gradio", "pandas")) == set()


def test_showing_a_quadtree_loads_torch_alone() -> None:
    assert loaded("import qlip.tools.show") == {"torch"}


def test_a_process_that_prepares_images_loads_no_models_library() -> None:
    unwanted = ("transformers", "gradio", "pandas", "scipy")
    assert loaded("import llava.eval.run.inputs.pictures, llava.model.vision.preparer", unwanted) == set()
