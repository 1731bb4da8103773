"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table_row(cells: Sequence[str]) -> str:
    """Formats a row of a table."""
    return f"| {' | '.join(cells)} |"


def table_head(names: Sequence[str]) -> str:
    """Formats the row of headings and the rule below it."""
    return f"{table_row(names)}\n{'|---' * len(names)}|"
