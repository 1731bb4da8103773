"""Answers a question file on a Ray cluster: `python -m llava.eval.ray_batch`, with the flags of model_vqa_loader.

Images and checkpoint must have the same paths on every node. The stages are in `llava.eval.run.cluster`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llava.command import OneLineParser, integer, real, run_command
from llava.eval.run.command import STOPPED
from llava.eval.run.flags import Defaults
from llava.eval.run.flags import make_parser as make_run_parser

NAME = "ray_batch"


def make_parser() -> OneLineParser:
    """Builds the parser: the flags of model_vqa_loader, and the cluster's."""
    parser = make_run_parser(
        NAME, "Answer a question file on a Ray cluster.", Defaults(temperature=0.0, max_new_tokens=128)
    )
    parser.add_argument("--address", help="the cluster's address; auto on one of its nodes (default: starts one here)")
    parser.add_argument("--concurrency", type=integer(), default=1, help="actors that hold the model (%(default)s)")
    parser.add_argument("--gpus-per-actor", type=real(), default=0.0, help="may be a fraction (%(default)s)")
    parser.add_argument("--cpus-per-actor", type=real(), default=1.0, help="cores of an actor (%(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    args = make_parser().parse_args(argv)

    def answer() -> int:
        from llava.eval.run.cluster import run

        return run(NAME, args)

    return run_command(NAME, answer, interrupted=STOPPED)


if __name__ == "__main__":
    sys.exit(main())
