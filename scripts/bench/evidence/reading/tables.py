"""Rows of the tables of signs that were read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from qlip.tools.intervals import mean_interval
from scripts.bench.evidence.answering.scene_sets import MIXED
from scripts.bench.evidence.pages.tables import interval
from scripts.bench.evidence.reading.trees import EXCHANGES, Reading
from scripts.markdown_table import table_row

COLUMNS = ("signs", "tree", "tokens", "at full size", "wholly", "read", "more", "read if wholly", "read if not wholly")
EXCHANGE_COLUMNS = ("signs", "text seen in", "beside the tokens of", "tokens", "read", "more")
WHOLE = 0.999
"""Share of the text from which all of it is at full size."""


def tree_rows(name: str, found: Mapping[str, Sequence[Reading]]) -> list[str]:
    """Formats the rows of one set, a tree each; shares in %, those of parts with their numbers of signs.

    "more" is how many points more are read than by the first tree, with the interval over the same signs.
    """
    (first, *_) = found.values()
    lines: list[str] = []
    for tree, readings in found.items():
        parts = [[each for each in readings if (each.seen >= WHOLE) == wholly] for wholly in (True, False)]
        values = [
            mean_tokens(readings),
            percent(readings, lambda each: each.seen),
            percent(readings, lambda each: each.seen >= WHOLE),
            percent(readings, lambda each: each.right),
            gained(readings, first) if lines else "",
            *(f"{percent(part, lambda each: each.right)} of {len(part)}" if part else "none" for part in parts),
        ]
        lines.append(table_row(["" if lines else name.removeprefix(MIXED), tree, *values]))
    return lines


def exchange_rows(name: str, found: Mapping[str, Sequence[Reading]]) -> list[str]:
    """Formats the rows of one set, one of `EXCHANGES` each; "more" as in `tree_rows`."""
    (first, *_) = found.values()
    lines: list[str] = []
    for way, readings in found.items():
        right = percent(readings, lambda each: each.right)
        more = gained(readings, first) if lines else ""
        shown = "" if lines else name.removeprefix(MIXED)
        lines.append(table_row([shown, *EXCHANGES[way], mean_tokens(readings), right, more]))
    return lines


def mean_tokens(readings: Sequence[Reading]) -> str:
    """Formats the mean number of tokens."""
    return f"{fmean(each.tokens for each in readings):.1f}"


def percent(readings: Sequence[Reading], value: Callable[[Reading], float]) -> str:
    """Formats the mean of a value in %."""
    return f"{100 * fmean(map(value, readings)):.1f}"


def gained(readings: Sequence[Reading], before: Sequence[Reading]) -> str:
    """Formats how many points more of the same signs are read than before, with the interval."""
    return interval(
        mean_interval([100.0 * (own.right - other.right) for own, other in zip(readings, before, strict=True)])
    )
