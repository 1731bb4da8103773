"""Tables of docs/RESULTS.md, made from files of answers."""

from __future__ import annotations

from collections.abc import Sequence

from playground.questions import V_STAR
from qlip.tools.intervals import Estimate
from scripts.bench.evidence.answering.answers import Answers, Cell
from scripts.bench.evidence.answering.experiments import EXPERIMENTS
from scripts.bench.evidence.answering.scene_sets import GROUND_SETS, KINDS, MEASURES
from scripts.bench.evidence.answering.variants import Variant
from scripts.markdown_table import join_values

BY_SET = ("sizes", "losses", "paper", "peers")
"""Experiments whose tables have a column for each set."""


def table(answers: Answers, ways: Sequence[Variant], name: str) -> str:
    """Formats a Markdown table of ways on one set; V* of each checkpoint, too, if there are several."""
    cells = [cell for (cell,) in answers.compare(ways, [name])]
    several = any(cell and len(cell.rows) > 1 for cell in cells)
    columns = ["tokens", "GFLOPs", "V*", *(["V* by checkpoint"] if several else []), "count", "existence"]
    lines = [f"| seen by | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for way, cell in zip(ways, cells, strict=True):
        if cell is None:
            lines.append(f"| {way.name} | not measured |{' |' * (len(columns) - 1)}")
            continue
        shares = describe(cell)
        lines.append(f"| {way.name} | {cell.tokens:.1f} | {format_flops(cell.flops)} | {' | '.join(shares)} |")
    return "\n".join(lines)


def describe(cell: Cell) -> list[str]:
    """Formats each of `MEASURES`; behind the first, V*, that of each checkpoint if there are several."""
    texts = [interval(cell.accuracy(kinds)) for kinds in MEASURES.values()]
    if len(cell.rows) > 1:
        texts.insert(1, join_values(cell.by_checkpoint(MEASURES["V*"])))
    return texts


def kind_table(answers: Answers, ways: Sequence[Variant], name: str) -> str:
    """Formats a Markdown table of ways on one set: accuracy in each kind of question asked, tokens and FLOPs."""
    cells = {way.name: cell for way, (cell,) in zip(ways, answers.compare(ways, [name]), strict=True)}
    asked = dict.fromkeys(kind for cell in cells.values() if cell for row in cell.rows for kind in row["right"])
    kinds = list(asked or KINDS)
    lines = [f"| seen by | tokens | GFLOPs | {' | '.join(kinds)} |", "|---" * (3 + len(kinds)) + "|"]
    for label, cell in cells.items():
        if cell:
            shares = " | ".join(f"{cell.share((kind,)):.1f}" for kind in kinds)
            lines.append(f"| {label} | {cell.tokens:.1f} | {format_flops(cell.flops)} | {shares} |")
        else:
            lines.append(f"| {label} | not measured |{' |' * (1 + len(kinds))}")
    return "\n".join(lines)


def format_flops(count: float | None) -> str:
    """Formats a number of operations in units of 10^9."""
    return "not counted" if count is None else f"{count / 1e9:.3g}"


def interval(estimate: Estimate) -> str:
    """Formats a mean and its interval."""
    return f"**{estimate.mean:.1f}** [{estimate.low:.1f}, {estimate.high:.1f}]"


def size_table(answers: Answers, ways: Sequence[Variant], sets: Sequence[str], kinds: Sequence[str]) -> str:
    """Formats a Markdown table of ways over sets: accuracy in the given kinds, and tokens.

    FLOPs, in units of 10^9, are the mean over the sets that were measured.
    """
    lines = ["| seen by | GFLOPs | " + " | ".join(sets) + " |", "|---" * (len(sets) + 2) + "|"]
    for way, cells in zip(ways, answers.compare(ways, sets), strict=True):
        texts = [f"{c.share(kinds):.1f} ({c.tokens:.0f})" if c else "not measured" for c in cells]
        counts = [cell.flops for cell in cells if cell and cell.flops is not None]
        flops = format_flops(sum(counts) / len(counts) if counts else None)
        lines.append(f"| {way.name} | {flops} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def tables(answers: Answers) -> dict[str, str]:
    """Formats every generated part of the document, by the name of its mark."""
    parts = {
        f"{name}: {chosen}": table(answers, experiment.ways, chosen)
        for name, experiment in EXPERIMENTS.items()
        if name not in (*BY_SET, "equal-flops", "between", "choice", "reading", "listing")
        for chosen in experiment.sets
    }
    equal, between = EXPERIMENTS["equal-flops"], EXPERIMENTS["between"]
    for name, kinds in (("V*", V_STAR), ("count", ("count",)), ("existence", ("existence",))):
        for by_set in BY_SET:
            parts[f"{by_set}: {name}"] = size_table(answers, EXPERIMENTS[by_set].ways, EXPERIMENTS[by_set].sets, kinds)
        by_size = [chosen for chosen in equal.sets if chosen not in GROUND_SETS]
        parts[f"equal-flops by size: {name}"] = size_table(answers, equal.ways, by_size, kinds)
        parts[f"equal-flops by ground: {name}"] = size_table(answers, equal.ways, GROUND_SETS, kinds)
    for size in dict.fromkeys(name.split(" of ")[0] for name in between.sets):
        sets = [name for name in between.sets if name.startswith(f"{size} of ")]
        parts[f"between: {size}"] = size_table(answers, between.ways, sets, V_STAR)
    for name in ("reading", "listing"):
        for chosen in EXPERIMENTS[name].sets:
            parts[f"{name} by kind: {chosen}"] = kind_table(answers, EXPERIMENTS[name].ways, chosen)
    for chosen in EXPERIMENTS["rivals"].sets:
        for name in ("rivals", "equal-flops", "dear-rivals"):
            parts[f"{name} by kind: {chosen}"] = kind_table(answers, EXPERIMENTS[name].ways, chosen)
    return parts
