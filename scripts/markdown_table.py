"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table_row(cells: Sequence[str]) -> str:
    """Formats a row of a table."""
    return f"| {' | '.join(cells)} |"


def table_head(names: Sequence[str]) -> str:
    """Formats the row of headings and the rule below it."""
    return f"{table_row(names)}\n{'|---' * len(names)}|"


def join_values(values: Iterable[float], digits: int = 1) -> str:
    """Formats the figures of several checkpoints for one cell, in their order."""
    return " / ".join(f"{value:.{digits}f}" for value in values)
