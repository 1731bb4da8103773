"""What photographs cost: tokens by setting, a sheet of their trees, and the time of each stage as ratios.

`python -m scripts.bench.evidence.photographs` writes docs/results/photographs.md and .jpg. Needs no weights: trees
depend on pixels alone, and the tower's time is that of one random layer of ViT-L/14 times its 24.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import OneLineParser, integer, parse_and_run
from qlip import QLIPConfig
from scripts.bench.evidence.answering.experiments import IN_GRID
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
    "the paper's geometry": QLIPConfig(**IN_GRID),
    "the paper's rule, alpha 0.1": QLIPConfig.paper(),
}
"""Settings whose tokens are counted, for CLIP ViT-L/14-336: 24 x 24 cells, 576 tokens."""
TIMED = ("the defaults", "the defaults, budget 864", "the defaults, budget 576", "the paper's geometry")
SHOWN = "the defaults"
CLIP_TOKENS = 576
REPEATS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="photographs", description="Count the tokens of photographs and time the stages.")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder to write to (%(default)s)")
    parser.add_argument("--repeats", type=integer(), default=REPEATS, help="interleaved turns of timing (%(default)s)")
    parser.add_argument("--shown", choices=SETTINGS, default=SHOWN, help="setting of the drawn trees (%(default)s)")
    parser.add_argument("--threads", type=integer(), default=os.cpu_count())
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Counts, times, and writes the page and the sheet."""
    import torch

    from scripts.bench.evidence.photographs.collection import load_photographs
    from scripts.bench.evidence.photographs.sheet import draw_sheet
    from scripts.bench.evidence.photographs.times import measure_stages, times_table

    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    photographs = load_photographs()
    counts = count_tokens(photographs, SETTINGS)
    draw_sheet(photographs, SETTINGS[options.shown]).save(options.out / "photographs.jpg", quality=80)
    rows = measure_stages(photographs, {name: SETTINGS[name] for name in TIMED}, options.repeats)
    page = format_page(photographs, counts, times_table(rows), options)
    (options.out / "photographs.md").write_text(page, encoding="utf-8")
    print(f"{options.out / 'photographs.md'}, {options.out / 'photographs.jpg'}")


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


def format_page(
    photographs: Sequence[Photograph], counts: dict[str, list[int]], times: str, options: argparse.Namespace
) -> str:
    """Formats the whole page."""
    crops = sum(item.cropped for item in photographs)
    licences = [table_row([item.name, item.source, item.licence]) for item in photographs if not item.cropped]
    parts = [
        "# Photographs",
        f"{len(photographs) - crops} photographs that ship inside scikit-image and matplotlib, and {crops} crops of"
        " them, each named as one,\nseen as by CLIP ViT-L/14-336, whose grid has 576 cells."
        " `python -m scripts.bench.evidence.photographs` writes this page.\n"
        "Three are pure texture (grass, gravel, brick), one is noise of stars (hubble_deep_field).",
        "## Tokens",
        tokens_table(photographs, counts),
        f"## Trees\n\n{options.shown}; numbers are tokens.",
        "![Contact sheet: every photograph with its tree](photographs.jpg)",
        f"## Time\n\nMedians of {options.repeats} interleaved turns over all photographs, threads: {options.threads};"
        " as shares of CLIP's preparation and tower\ntogether. The tower is one random layer of ViT-L/14 in float32,"
        " times 24.",
        times,
        "## Licences\n\nAs stated by the packages.",
        "\n".join([table_head(["photograph", "from", "licence"]), *licences]),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
