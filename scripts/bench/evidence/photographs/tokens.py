"""Counts the tokens of photographs by setting."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qlip import QLIPConfig
from scripts.bench.evidence.answering.trees import IN_GRID, STRUCTURE
from scripts.markdown_table import table_head, table_row

if TYPE_CHECKING:
    from scripts.bench.evidence.photographs.collection import Photograph


SETTINGS = {
    "the defaults": QLIPConfig(),
    "the defaults, budget 864": QLIPConfig(max_tokens=864),
    "the defaults, budget 576": QLIPConfig(max_tokens=576),
    "the defaults, no budget": QLIPConfig(max_tokens=None),
    "no budget, without the noise floor": QLIPConfig(max_tokens=None, noise_floor=False),
    "no budget, alpha 1.2": QLIPConfig(max_tokens=None, alpha=1.2),
    "alpha 1.2, budget 864": QLIPConfig(max_tokens=864, alpha=1.2),
    "structure, the default before": QLIPConfig(**STRUCTURE),
    "the paper's geometry": QLIPConfig(**IN_GRID),
    "the paper's rule, alpha 0.1": QLIPConfig.paper(),
}
"""Settings whose tokens are counted, for CLIP ViT-L/14-336: 24 x 24 cells, 576 tokens."""
CLIP_TOKENS = 576


def count_tokens(photographs: Sequence[Photograph], settings: dict[str, QLIPConfig]) -> dict[str, list[int]]:
    """Counts the leaves of each photograph, by setting."""
    from qlip.cutting import ImageCutter

    cutter = ImageCutter()
    return {
        name: [len(cutter.find_leaves(item.picture, chosen)) for item in photographs]
        for name, chosen in settings.items()
    }


def tokens_table(photographs: Sequence[Photograph], counts: dict[str, list[int]]) -> str:
    """Formats tokens by photograph and setting, with the mean as a multiple of CLIP's."""
    names = list(counts)
    lines = [table_head(["photograph", "pixels", *names])]
    for index, item in enumerate(photographs):
        size = f"{item.picture.width} x {item.picture.height}"
        lines.append(table_row([item.name, size, *(str(counts[name][index]) for name in names)]))
    means = [sum(column) / len(column) for column in counts.values()]
    lines.append(table_row(["median", "", *(f"{statistics.median(column):.0f}" for column in counts.values())]))
    lines.append(table_row(["mean", "", *(f"{mean:.0f}" for mean in means)]))
    lines.append(table_row(["mean, of CLIP's 576", "", *(f"{mean / CLIP_TOKENS:.2f}" for mean in means)]))
    return "\n".join(lines)
