"""Chooses how answers are attributed to leaves: `python -m scripts.bench.evidence.deletion`.

The deletion test: the tenth of a picture's leaves that an attribution weighs most is left out, and the question is
asked again; the better the attribution, the more answers change. The same number of random leaves is left out for
comparison. Writes one JSON line for each scene, so that a stopped run continues, and the table between the marks of
docs/results/attribution.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OneLineParser, integer, parse_and_run, real
from llava.utils import demo_model_path
from scripts.bench.evidence.answering.flags import named_path
from scripts.bench.evidence.answering.scene_sets import SCENES, SET_NAMES, SPLITS

SETS = ("6-12 px", "12-24 px", "24-48 px", "mixed/ground photo")
LOG = Path("evidence/deletion.jsonl")
PAGE = Path("docs/results/attribution.md")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="deletion", description="Test attributions by leaving out what they weigh most.")
    models = [("llava-demo", demo_model_path())]
    parser.add_argument("--model", type=named_path, nargs="+", default=models, help="NAME=CHECKPOINT ...")
    parser.add_argument("--sets", nargs="+", choices=SET_NAMES, default=list(SETS), metavar="SET")
    parser.add_argument("--split", choices=SPLITS, default="validation", help="series of scenes (%(default)s)")
    parser.add_argument("--scenes", type=integer(), default=SCENES, help="scenes a set, five questions each")
    parser.add_argument("--share", type=real(), default=0.1, help="share of the leaves to leave out (%(default)s)")
    parser.add_argument("--log", type=Path, default=LOG, help="file of the results by scene (%(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the marks to fill (%(default)s)")
    parser.add_argument("--report-only", action="store_true", help="measure nothing; report what the log holds")
    parser.add_argument("--threads", type=integer(), default=1)
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Measures what the log lacks, prints the table and fills the page."""
    import torch

    from scripts.bench.evidence.deletion.measure import measure, table
    from scripts.bench.evidence.pages.fill import fill_page

    torch.set_num_threads(options.threads)
    rows = measure(options)
    text = table(rows)
    print(text)
    if options.page.exists():
        fill_page(options.page, {"deletion test": text}, partly=True)


if __name__ == "__main__":
    sys.exit(main())
