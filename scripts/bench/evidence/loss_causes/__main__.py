"""Finds where a quadtree's losses arise: `python -m scripts.bench.evidence.loss_causes`.

The language model is given the leaves' places, but features of CLIP's uniform grid, or the other way round. What is
lost with CLIP's features is lost by the number and the places of tokens; what only the leaves' features lose, is lost
by the tower. Fills the table of docs/results/loss-causes.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import OneLineParser, integer, parse_and_run
from llava.utils import demo_model_path
from scripts.bench.evidence.answering.scene_sets import MEASURES, SET_NAMES, SPLITS
from scripts.bench.evidence.answering.trees import STRUCTURE_BY_SCORE
from scripts.markdown_table import table_head, table_row

if TYPE_CHECKING:
    from scripts.bench.evidence.answering.answers import Cell

SETS = ("48-96 px", "96-192 px", "mixed/size 48-96", "mixed/size 96-192")
SCENES = 400
PAGE = Path("docs/results/loss-causes.md")
MARK = "loss causes"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="loss_causes", description="Exchange a quadtree's features with CLIP's.")
    parser.add_argument(
        "--model-path",
        nargs="+",
        default=[demo_model_path()],
        metavar="CHECKPOINT",
        help="one or several, reported together (default: the one that was trained as LLaVA is)",
    )
    parser.add_argument("--sets", nargs="+", choices=SET_NAMES, default=list(SETS), metavar="SET")
    parser.add_argument("--split", choices=SPLITS, default="validation", help="series of scenes (%(default)s)")
    parser.add_argument("--scenes", type=integer(), default=SCENES, help="scenes a set, five questions each")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the mark to fill (%(default)s)")
    parser.add_argument("--threads", type=integer(), default=1)
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Asks every set in every way, prints the table and fills the page."""
    import torch

    from llava.model.builder import load_pretrained_model
    from llava.serve.engine import ChatEngine
    from scripts.bench.evidence.answering.sets import draw_set
    from scripts.bench.evidence.loss_causes.exchange import examine
    from scripts.bench.evidence.pages.fill import fill_page

    torch.set_num_threads(options.threads)
    loaded = [load_pretrained_model(path, device="cpu", qlip=STRUCTURE_BY_SCORE) for path in options.model_path]
    engines = [ChatEngine(*model) for model in loaded]
    lines = [head(several=len(engines) > 1)]
    for name in options.sets:
        questions = draw_set(name, options.split, options.scenes)
        lines += rows(name, [examine(engine, questions) for engine in engines])
        print("\n".join(lines), flush=True)
    if options.page.exists():
        fill_page(options.page, {MARK: "\n".join(lines)})


def head(several: bool) -> str:
    """Formats the head of the table, with V* by checkpoint if there are several."""
    first, *others = MEASURES
    own = [f"{first} by checkpoint"] if several else []
    return table_head(["scenes", "the language model gets", "tokens", first, *own, *others])


def rows(name: str, checkpoints: Sequence[Mapping[str, Cell]]) -> list[str]:
    """Formats the rows of one set: what each checkpoint answered to the same questions, by way."""
    from scripts.bench.evidence.answering.answers import Cell
    from scripts.bench.evidence.pages.tables import describe

    lines = []
    for way in checkpoints[0]:
        cell = Cell([{**row, "model": number} for number, cells in enumerate(checkpoints) for row in cells[way].rows])
        lines.append(table_row(["" if lines else name, way, f"{cell.tokens:.1f}", *describe(cell)]))
    return lines


if __name__ == "__main__":
    sys.exit(main())
