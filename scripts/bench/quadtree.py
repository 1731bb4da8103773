"""Times the quadtree: `python -m scripts.bench.quadtree [--sizes 336 672 896 1792] [--repeats 5] [--alpha 0.1]`.

For every size and photograph (scikit-image's, resized) it measures partition + extract_patches, ours and a naive
recursive implementation's, in turns so that both meet the same state of the machine, and the forward pass of a ViT-L/14
(random weights) over as many tokens as ours gave, at most the default budget. Everything runs on the CPU.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llava.command import OneLineParser, integer, parse_and_run, real
from scripts.bench.pictures import PATCH, PHOTOGRAPHS, multiple_of_patch

if TYPE_CHECKING:
    from scripts.bench.quadtree_times import Row


def print_table(rows: Sequence[Row], native_forward: float) -> None:
    """Prints milliseconds and ratios, a line for each size."""
    print("  px   cells  tokens  ours ms  naive ms  ratio  ViT-L ms  share of ViT-L  share of ViT-L at 577")
    for row in rows:
        print(
            f"{row.size:4d}  {(row.size // PATCH) ** 2:6d}  {row.tokens:6.0f}  {row.ours:7.2f}  {row.naive:8.1f}"
            f"  {row.naive / row.ours:5.1f}  {row.forward:8.0f}  {row.ours / row.forward:13.2%}"
            f"  {row.ours / native_forward:20.2%}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(
        prog="quadtree", description="Times partition + extract_patches against a naive peer and a ViT-L."
    )
    parser.add_argument("--sizes", type=multiple_of_patch, nargs="+", default=[336, 672, 896, 1792], help="pixels")
    parser.add_argument("--repeats", type=integer(), default=5, help="measurements per photograph")
    parser.add_argument("--alpha", type=real(infinite=True), default=0.1, help="split threshold")
    parser.add_argument("--threads", type=integer(), help="threads of torch (default: its own choice)")
    return parse_and_run(parser, run, argv)


def run(args: argparse.Namespace) -> None:
    """Measures every size and prints a table."""
    import torch

    from scripts.bench.quadtree_times import forward_milliseconds, measure, vit_large

    torch.manual_seed(0)
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores, {platform.machine()}")
    print(f"gradient, alpha {args.alpha}; medians over {', '.join(PHOTOGRAPHS)} x {args.repeats}")
    tower = vit_large()
    native_forward = forward_milliseconds(tower, 576, repeats=args.repeats)
    rows = [measure(size, tower, args.alpha, args.repeats) for size in args.sizes]
    print_table(rows, native_forward)


if __name__ == "__main__":
    sys.exit(main())
