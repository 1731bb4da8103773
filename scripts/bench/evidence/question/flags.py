"""Flags of the commands that ask questions about scenes over photographs."""

from __future__ import annotations

import argparse
from pathlib import Path

from llava.command import OneLineParser, integer
from llava.utils import demo_model_path
from scripts.bench.evidence.answering.scene_sets import SPLITS

PAGE = Path("docs/results/question.md")


def pixels(text: str) -> tuple[int, int]:
    """Parses `LOW-HIGH`, the least and greatest size of the objects, for argparse's `type`."""
    low, _, high = text.partition("-")
    if not (low.isdecimal() and high.isdecimal() and 0 < int(low) <= int(high) <= 224):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; it must be LOW-HIGH, 1 to 224 pixels")
    return int(low), int(high)


def make_parser(prog: str, description: str) -> OneLineParser:
    """Builds a parser with the flags of commands that ask questions about scenes over photographs."""
    parser = OneLineParser(prog=prog, description=description)
    parser.add_argument(
        "--model",
        nargs="+",
        default=[demo_model_path()],
        metavar="CHECKPOINT",
        help="one or several, reported together (default: the one that was trained as LLaVA is)",
    )
    parser.add_argument("--scenes", type=integer(), default=100, help="scenes, six questions each (%(default)s)")
    parser.add_argument("--seed", type=integer(0), default=9101, help="series of scenes (%(default)s)")
    parser.add_argument(
        "--sizes", type=pixels, nargs="+", default=[(12, 24), (16, 28), (24, 48)], help="object sizes, LOW-HIGH pixels"
    )
    parser.add_argument("--photos", choices=SPLITS, default="validation", help="split of the photographs (%(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the marks to fill (%(default)s)")
    parser.add_argument("--threads", type=integer(), default=1)
    return parser
