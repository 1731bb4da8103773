"""What `cost` times for each model, and the table that it prints."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scripts.bench.cost_models import SHAPES, Subject, build_random, load_demo
from scripts.bench.cost_stages import STAGES, CostVariant, Row, measure
from scripts.bench.pictures import PATCH
from scripts.markdown_table import table_head, table_row

NEW_TOKENS = 16
UNIFORM_CELLS = 48**2
"""Largest grid that the uniform way is timed on, 672 px: attention over the next ones takes seconds a turn."""

CLIP = CostVariant("CLIP", None)
PAPER = {"criterion": "gradient", "alpha": 0.1, "coarsest": "any", "split_order": "score"}
"""The paper's quadtree, which the recursive one can build too, with a budget by a higher threshold."""


def budget(tokens: int) -> CostVariant:
    """Makes QLIP with the paper's criterion and a budget."""
    return CostVariant(f"QLIP {tokens}", {**PAPER, "max_tokens": tokens})


def recursive(way: CostVariant, device: str) -> list[CostVariant]:
    """Makes the recursive quadtree with the same leaves, on the model's device; also on the CPU if that is a GPU."""
    places = [(device, "recursive")] if device == "cpu" else [(device, "recursive on GPU"), ("cpu", "recursive on CPU")]
    return [CostVariant(f"{way.name}, {name}", way.settings, place, same_leaves_as=way.name) for place, name in places]


def ways_of(model: str, device: str, size: int, sizes: Sequence[int]) -> list[CostVariant]:
    """Lists what is timed for a model at one of the sizes; ViT-L's further budgets at the middle one only.

    A tower's time follows from its number of tokens, so that more of them would say the same for minutes more.
    """
    if model == "demo":
        gradient = CostVariant("QLIP, gradient", PAPER)
        uniform = CostVariant("uniform, native size", {"alpha": 0.0, "max_tokens": None}, most_cells=UNIFORM_CELLS)
        return [CLIP, CostVariant("QLIP as shipped"), gradient, *recursive(gradient, device), uniform]
    if model == "vit-l":
        further = [288, 864, 1024] if size == sizes[len(sizes) // 2] else []
        return [CLIP, *(budget(tokens) for tokens in sorted([576, *further])), *recursive(budget(576), device)]
    return [CLIP, *map(budget, (144, 288, 576, 1024)), *recursive(budget(576), device)]


def build(model: str, device: str) -> Subject:
    """Builds one of the models."""
    if model == "demo":
        return load_demo(device)
    return build_random(model, SHAPES[model], device, torch.float32 if device == "cpu" else torch.float16)


def measure_model(
    subject: Subject, device: str, sizes: Sequence[int], repeats: int, new_tokens: int = NEW_TOKENS
) -> tuple[list[Row], list[str]]:
    """Measures all rows of a model; returns them and what was left out."""
    rows, left_out = [], []
    for size in sizes:
        ways, cells = ways_of(subject.name, device, size, sizes), (size // PATCH) ** 2
        fitting = [way for way in ways if way.most_cells is None or cells <= way.most_cells]
        left_out += [f"{way.name} at {size} px ({cells} tokens)" for way in ways if way not in fitting]
        rows += measure(subject, fitting, size, repeats, new_tokens)
    return rows, left_out


def table(rows: Sequence[Row], ways: Sequence[CostVariant]) -> str:
    """Formats a Markdown table: a row for every way at every size; columns that all rows lack are left out."""
    stages = [stage for stage in STAGES if any(stage in row.runs for row in rows)]
    head = ["picture", "seen by", "tokens", *stages, "total / CLIP", "quadtree / ours"]
    lines = [table_head(head)]
    peers = {way.name: way.same_leaves_as for way in ways}
    by_place = {(row.size, row.way): row for row in rows}
    for row in rows:
        total = ratio(row, by_place.get((row.size, CLIP.name)), "total")
        tree = ratio(row, by_place.get((row.size, peers.get(row.way) or "")), "partition", "extraction")
        times = [show(row.median(stage)) for stage in stages]
        lines.append(table_row([f"{row.size} px", row.way, f"{row.tokens:g}", *times, show(total), show(tree)]))
    return "\n".join(lines)


def ratio(row: Row, peer: Row | None, *stages: str) -> float | None:
    """Divides the stages' time by the peer's; None where one of the two lacks them."""
    own, other = row.median(*stages), peer and peer.median(*stages)
    return own / other if own is not None and other else None


def show(value: float | None) -> str:
    """Formats milliseconds with three digits; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"
