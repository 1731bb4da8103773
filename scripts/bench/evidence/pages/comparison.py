"""Tables that compare ways of encoding images over many sets, and the parts of such tables."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from scripts.bench.evidence.answering.answers import Answers, Cell, difference
from scripts.bench.evidence.answering.scene_sets import MEASURES, MIXED
from scripts.bench.evidence.answering.variants import Variant
from scripts.bench.evidence.pages.tables import interval
from scripts.markdown_table import join_values, table_head, table_row

COLUMNS = {**MEASURES, "signs": ("sign",)}


def compare_ways(answers: Answers, ways: Sequence[Variant], sets: Sequence[str], change: str) -> str:
    """Formats each set's accuracy by CLIP and two ways; checkpoints are taken together.

    Args:
        answers: of a split.
        ways: CLIP and the two.
        sets: names of the sets.
        change: the name of the difference between the third way and the second.

    Raises:
        ValueError: a set lacks answers.
    """
    cells = dict(zip(sets, zip(*answers.compare(ways, sets), strict=True), strict=True))
    lines = [table_head(["scenes", "tokens", *COLUMNS, change, "by checkpoint"])]
    means: dict[str, list[list[float]]] = {name: [] for name in COLUMNS}
    differences = []
    for name, row in cells.items():
        if any(cell is None for cell in row):
            raise ValueError(f"there are no answers to {name!r} in all of {', '.join(way.name for way in ways)}")
        known = [cell for cell in row if cell]
        shares = {column: find_shares(known, kinds) for column, kinds in COLUMNS.items()}
        for column, values in shares.items():
            means[column] += [values] if values else []
        models = sorted(entry["model"] for entry in known[-1].rows)
        own = [difference(*([cell.of_checkpoint(model)] for cell in known[1:])).mean for model in models]
        differences.append(own)
        texts = [join_values(values) if values else "" for values in shares.values()]
        more = interval(difference(*([cell] for cell in known[1:])))
        lines.append(table_row([name.removeprefix(MIXED), f"{known[-1].tokens:.1f}", *texts, more, join_values(own)]))
    averages = [join_values(map(fmean, zip(*values, strict=True))) for values in means.values()]
    by_checkpoint = [fmean(own) for own in zip(*differences, strict=True)]
    lines.append(table_row(["mean", "", *averages, f"**{fmean(by_checkpoint):.1f}**", join_values(by_checkpoint)]))
    return "\n".join(lines)


def average(cells: Sequence[Cell]) -> list[str]:
    """Formats the mean number of tokens over sets, and the mean accuracy of each of `COLUMNS`."""
    return [f"{fmean(cell.tokens for cell in cells):.1f}", *average_shares(cells)]


def average_shares(cells: Sequence[Cell]) -> list[str]:
    """Formats the mean accuracy over sets of each of `COLUMNS`; empty where none was asked its kinds."""
    shares = [[share for cell in cells for share in find_shares([cell], kinds)] for kinds in COLUMNS.values()]
    return [f"{fmean(own):.1f}" if own else "" for own in shares]


def find_shares(cells: Sequence[Cell], kinds: Sequence[str]) -> list[float]:
    """Computes the accuracy of each cell in %; none where these kinds were not asked."""
    if not all(kind in row["right"] for cell in cells for row in cell.rows for kind in kinds):
        return []
    return [cell.share(kinds) for cell in cells]
