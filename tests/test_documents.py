"""What the pages quote is what the programs have: error messages, and the flags of the installed commands."""

from __future__ import annotations

import ast
import contextlib
import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from llava.train.flags import own_fields

ROOT = Path(__file__).parent.parent
TROUBLESHOOTING = (ROOT / "docs" / "TROUBLESHOOTING.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^\| `([^`]+)` \|", TROUBLESHOOTING, re.MULTILINE)


SOURCES = [file.read_text(encoding="utf-8") for package in ("llava", "qlip") for file in (ROOT / package).rglob("*.py")]


@cache
def literals(source: str) -> list[str]:
    """All string literals of a file; the variable parts of f-strings are "..."."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def test_the_page_has_the_likely_errors() -> None:
    assert len(MESSAGES) >= 35
    assert len(set(MESSAGES)) == len(MESSAGES)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_error_has_the_programs_own_words(message: str) -> None:
    """In order, in one literal: `...` is any text."""
    pattern = re.compile(".*".join(map(re.escape, message.strip().split("..."))), re.DOTALL)
    words = re.findall(r"\w+", message)
    likely = (source for source in SOURCES if all(word in source for word in words))  # parsing all takes seconds
    assert any(pattern.search(text) for source in likely for text in literals(source))


def test_the_page_installs_the_pytorch_that_the_tests_run_with() -> None:
    """Another version would be replaced by PyPI's, with CUDA's libraries."""
    (version,) = re.findall(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"pip install torch=={version} " in (ROOT / "docs" / "INSTALL.md").read_text(encoding="utf-8")


FLAG = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*(?:\.\w+)*")
COMMANDS = ["llava", "llava-train", "qlip show", "qlip sweep", "qlip bias", "qlip fit"]
MAINS = {"llava": "llava.serve.cli", "llava-train": "llava.train.train", "qlip": "qlip.cli"}
SHARED = "Flags of the model"


def help_flags(command: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The flags that a command's `--help` prints, without those of every command and of transformers."""
    program, *rest = command.split()
    with contextlib.suppress(SystemExit):
        import_module(MAINS[program]).main([*rest, "--help"])
    found = set(FLAG.findall(capsys.readouterr().out)) - {"--help"}
    if program == "llava-train":
        own = own_fields()
        found = {flag for flag in found if flag[2:].partition(".")[0] in own}
    return found


def page_flags(heading: str, columns: bool) -> set[str]:
    """The flags in a section of docs/COMMANDS.md: all, or those that the first column of its table defines."""
    page = (ROOT / "docs" / "COMMANDS.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    if columns:
        section = "\n".join(re.findall(r"^\|([^|]*)\|", section, re.MULTILINE))
    return set(FLAG.findall(section))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_documented_in_the_commands_section(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = help_flags(command, capsys)
    shared = page_flags(SHARED, columns=True) if command in ("llava", "qlip sweep") else set()
    assert len(flags) > 10
    assert sorted(flags - page_flags(command, columns=False) - shared) == []
    assert sorted((page_flags(command, columns=True) | shared) - flags) == []


def test_the_evidence_of_choices_is_in_the_results() -> None:
    """Each figure with a decimal in docs/CHOOSING.md occurs in the pages of results that it rests on."""
    docs = ROOT / "docs"
    sources = [docs / "RESULTS.md", docs / "MODELS.md", *(docs / "results").glob("*.md")]
    measured = set(re.findall(r"\d+\.\d+", "\n".join(file.read_text(encoding="utf-8") for file in sources)))
    figures = re.findall(r"(?<![-\d.])\d+\.\d+", (docs / "CHOOSING.md").read_text(encoding="utf-8"))
    assert len(figures) > 30
    assert sorted(set(figures) - measured) == []
