"""The README tells the truth: its commands answer and its Python runs, in processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def run(*command: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs a command as a newcomer would, without the flags of the `make` that may have started the tests."""
    inherited = {name: value for name, value in os.environ.items() if name != "ARGS" and not name.startswith("MAKE")}
    return subprocess.run(
        command, cwd=folder, env=inherited, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
    )


def test_make_chat_answers_one_line_about_the_demo_picture():
    done = run("make", "chat", "PROMPT=What is in the picture?")
    assert done.returncode == 0, done.stderr
    (answer,) = done.stdout.splitlines()
    assert re.search(r"\ba (red|green|blue|yellow|purple|cyan) (square|circle|triangle|cross|ring)\b", answer)


def test_the_python_snippet_runs(tmp_path):
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = run(sys.executable, "-c", snippet, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("path", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_links_lead_to_files(path):
    assert (ROOT / path).exists()


def test_the_tree_names_what_is_there():
    (tree,) = re.findall(r"## Where things are\n\n```\n(.*?)```", README, re.DOTALL)
    folder = ROOT
    for line in tree.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split()
        if not line.startswith(" "):
            folder = ROOT / names[0] if names[0].count("/") == 1 and names[0].endswith("/") else ROOT
        base = folder if line.startswith(" ") else ROOT
        for name in names:
            place = base if "/" in name else (base / names[0]).parent  # further names lie beside the first
            assert list(place.glob(name)), f"{base.name}/{name}"
