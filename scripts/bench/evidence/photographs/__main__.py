"""What photographs cost: tokens by setting, a sheet of their trees, and the time of each stage as ratios.

`python -m scripts.bench.evidence.photographs` writes docs/results/photographs.md and .jpg. Needs no weights: trees
depend on pixels alone, and the tower's time is that of one random layer of ViT-L/14 times its 24.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import OneLineParser, integer, parse_and_run
from scripts.bench.evidence.photographs.tokens import SETTINGS, count_tokens, tokens_table
from scripts.markdown_table import table_head, table_row

if TYPE_CHECKING:
    from scripts.bench.evidence.photographs.collection import Photograph

TIMED = (
    "the defaults",
    "the defaults, budget 864",
    "the defaults, budget 576",
    "structure, the default before",
    "the paper's geometry",
)
SHOWN = "the defaults"
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
