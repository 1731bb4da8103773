"""What the pages quote is what the programs have: error messages."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TROUBLESHOOTING = (ROOT / "docs" / "TROUBLESHOOTING.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^\| `([^`]+)` \|", TROUBLESHOOTING, re.MULTILINE)


@cache
def texts() -> tuple[str, ...]:
    """All string literals of the packages; the variable parts of f-strings are "..."."""
    found = []
    for package in ("llava", "qlip"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return tuple(found)


def test_the_page_has_the_likely_errors() -> None:
    assert len(MESSAGES) >= 35
    assert len(set(MESSAGES)) == len(MESSAGES)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_error_has_the_programs_own_words(message: str) -> None:
    """In order, in one literal: `...` is any text."""
    pattern = re.compile(".*".join(map(re.escape, message.strip().split("..."))), re.DOTALL)
    assert any(map(pattern.search, texts()))
