"""Runs the benchmarks whose tables are in the documents, and writes the tables there: `python -m scripts.bench.pages`.

A table is written between two marks that contain its command:

    <!-- python -m scripts.bench.joining --rounds 3 -->
    ...
    <!-- end python -m scripts.bench.joining --rounds 3 -->

`--only joining` runs some benchmarks. All take about half an hour on two cores, which must be idle.
`scripts.bench.quadtree` and `scripts.bench.cost --out` write pages of their own.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from llava.command import OneLineParser, parse_and_run
from scripts.bench.evidence.pages.fill import fill_page

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(r"<!-- (?P<line>(?:\w+=\w+ )*python -m scripts\.bench\.(?P<name>\w+)[^\n]*?) -->")
"""The mark before a table: environment variables, if any, and the command."""


def list_pages() -> list[Path]:
    """Lists the documents that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def find_commands(text: str) -> dict[str, str]:
    """Finds the commands whose output a page holds, each with the name of its benchmark."""
    return {match["line"]: match["name"] for match in COMMAND.finditer(text)}


def run_command_line(line: str) -> str:
    """Runs the command of a mark by this interpreter; returns what it printed.

    Raises:
        RuntimeError: it failed; its message is on the screen.
    """
    words = shlex.split(line)
    start = words.index("python")
    variables = {**os.environ, **dict(word.split("=", 1) for word in words[:start])}
    command = [sys.executable, *words[start + 1 :]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=variables, check=False)
    if done.returncode:
        raise RuntimeError(f"{line} failed, and no page was changed by it; see its message above")
    return done.stdout.strip()


def update_pages(pages: Iterable[Path], only: Sequence[str] | None = None) -> None:
    """Runs the commands of pages and writes what they print between their marks, after each one.

    Raises:
        ValueError: `only` names a benchmark whose output no page holds.
        RuntimeError: a command failed.
    """
    found = {page: find_commands(page.read_text(encoding="utf-8")) for page in pages}
    known = {name for commands in found.values() for name in commands.values()}
    if unknown := sorted(set(only or ()) - known):
        raise ValueError(f"no page holds a table of {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    for page, commands in found.items():
        for line, name in commands.items():
            if only is None or name in only:
                print(line, file=sys.stderr, flush=True)
                fill_page(page, {line: run_command_line(line)}, partly=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="pages", description="Runs the benchmarks whose tables are in the documents.")
    parser.add_argument("pages", nargs="*", type=Path, help="default: README.md and docs/")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="benchmarks, such as serving; default: all")
    return parse_and_run(parser, run, argv)


def run(options: argparse.Namespace) -> None:
    """Updates the pages."""
    update_pages(options.pages or list_pages(), options.only)


if __name__ == "__main__":
    sys.exit(main())
