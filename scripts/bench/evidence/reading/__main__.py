"""Finds what decides whether a sign is read: `python -m scripts.bench.evidence.reading`.

The model is asked what the sign says, by several trees as they are and with the sign's text split down to single
cells, and it is noted how much of the text each tree shows at full size. Then the text as the tower saw it in one tree
is put beside the other tokens of another. Fills two tables of docs/results/reading.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OneLineParser, integer, parse_and_run
from llava.utils import demo_model_path
from scripts.bench.evidence.answering.flags import add_split_flag
from scripts.bench.evidence.answering.scene_sets import MIXED, MIXED_SETS
from scripts.bench.evidence.answering.trees import STRUCTURE
from scripts.bench.evidence.reading.trees import EXCHANGES, TREES
from scripts.markdown_table import table_head

SETS = tuple(name for name in MIXED_SETS if name.startswith(f"{MIXED}signs "))
PAGE = Path("docs/results/reading.md")
TREES_MARK, EXCHANGES_MARK = "reading: causes", "reading: exchanges"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="reading", description="Find what decides whether a sign is read.")
    parser.add_argument("--model-path", default=demo_model_path(), help="checkpoint (default: the one that ships)")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET")
    add_split_flag(parser)
    parser.add_argument("--scenes", type=integer(), default=400, help="scenes a set, one sign each (%(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the marks to fill (%(default)s)")
    parser.add_argument("--threads", type=integer(), default=1)
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Asks about every sign in every way, prints the rows and fills the page."""
    import torch

    from llava.model.builder import load_pretrained_model
    from llava.serve.engine import ChatEngine
    from scripts.bench.evidence.pages.fill import fill_page
    from scripts.bench.evidence.reading.measure import read_signs
    from scripts.bench.evidence.reading.tables import COLUMNS, EXCHANGE_COLUMNS, exchange_rows, tree_rows

    torch.set_num_threads(options.threads)
    trees, exchanges = [table_head(COLUMNS)], [table_head(EXCHANGE_COLUMNS)]
    engine = ChatEngine(*load_pretrained_model(options.model_path, device="cpu", qlip=STRUCTURE))
    for name in options.sets:
        found = read_signs(engine, name, options.split, options.scenes)
        own = tree_rows(name, {way: found[way] for way in TREES})
        crossed = exchange_rows(name, {way: found[way] for way in EXCHANGES})
        print("\n".join([*own, *crossed]), flush=True)
        trees += own
        exchanges += crossed
    engine.close()
    if options.page.exists():
        fill_page(options.page, {TREES_MARK: "\n".join(trees), EXCHANGES_MARK: "\n".join(exchanges)}, partly=True)


if __name__ == "__main__":
    sys.exit(main())
