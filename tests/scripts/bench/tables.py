"""Reads what benchmarks print."""

from __future__ import annotations


def read_table(text: str) -> list[list[str]]:
    """Reads the cells of a Markdown table's rows, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
