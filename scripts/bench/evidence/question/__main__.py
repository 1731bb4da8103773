"""Measures the question-aware budget on shapes over photographs: `python -m scripts.bench.evidence.question`.

The scores alone at several budgets, against the question at several shares, with and without one for the scores; the
same scenes and questions for every way. Fills the tables of docs/results/question.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from llava.command import integer, parse_and_run
from scripts.bench.evidence.answering.trees import STRUCTURE
from scripts.bench.evidence.question.flags import make_parser

TREES = {"structure": STRUCTURE, "objects": {"criterion": "objects"}}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = make_parser("question", "Measure the question-aware budget.")
    parser.add_argument("--layers", type=integer(0), nargs="+", default=[], help="further layers to read")
    parser.add_argument("--criterion", choices=TREES, default="structure", help="of the scores (%(default)s)")
    parser.add_argument("--ways", nargs="+", metavar="NAME", help="only these rows of the table")
    parser.add_argument("--mark", default="question", help="what the names of the marks to fill begin with")
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Measures every size, prints a table for each and fills the page."""
    import torch

    from llava.model.builder import load_pretrained_model
    from llava.serve.engine import ChatEngine
    from scripts.bench.evidence.pages.fill import fill_page
    from scripts.bench.evidence.question.measure import choose_ways, draw_scenes, make_ways, measure, table

    torch.set_num_threads(options.threads)
    trees = TREES[options.criterion]
    engines = [ChatEngine(*load_pretrained_model(path, device="cpu", qlip=trees)) for path in options.model]
    towers = [engine.model.get_vision_tower() for engine in engines]
    for low, high in options.sizes:
        scenes = list(draw_scenes((low, high), options.seed, options.scenes, options.photos))
        tallies = []
        for engine, tower in zip(engines, towers, strict=True):
            ways = make_ways(tower.settings, tower.num_patches, options.layers)
            tallies.append(measure(engine, choose_ways(ways, options.ways), scenes))
        text = table(tallies, towers[0].num_patches)
        print(f"{low}-{high} px, {options.scenes} scenes, seed {options.seed}\n\n{text}\n", flush=True)
        if options.page.exists():
            fill_page(options.page, {f"{options.mark}: {low}-{high} px": text}, partly=True)
    for engine in engines:
        engine.close()


if __name__ == "__main__":
    sys.exit(main())
