"""Times the quadtree: `python -m scripts.bench.quadtree` writes docs/results/quadtree.md.

For each criterion, size and photograph (scikit-image's, resized) it measures partition + extract_patches, ours and
a recursive implementation's with the same leaves, and the time to copy the image and the patches once, in turns so that
all meet the same state of the machine; and ours again while a process per core computes. Everything runs on the CPU.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OneLineParser, integer, parse_and_run
from scripts.bench.pictures import PHOTOGRAPHS, multiple_of_patch, read_size

CRITERIA = ("objects", "structure", "gradient")

INTRODUCTION = """\
# The quadtree's time

`python -m scripts.bench.quadtree` writes this page. Partition and patches of four photographs,
{photographs}, resized to squares.
*copy* is the time to copy the image once and the patches once, below which no implementation can go (at 1792 px more,
since an image of 39 MB gets new pages from the system each time); *recursive* finds the same leaves block by block, in
torch. Medians over the photographs of the fastest of {repeats} turns, the ways in turns. *busy / quiet* compares the
medians of all turns, with another process that computes on each core and without.
*By numba* is all of it, with the loops that the extra `fast` compiles instead of numpy's, compiling not included.
The last table has the whole preparation of an image, which also resizes it.

{machine}; torch {torch}, threads: {threads}. The quadtree itself runs on one thread however many torch has."""

HEADINGS = {
    "objects": "## objects, the default criterion\n\nAlpha 0.8, at most 1152 leaves, none coarser than a cell of "
    "CLIP's; in the paper's geometry, of the image's own pixels, and without the noise floor.",
    "structure": "## structure, the default until 30 November 2026\n\nThe same, with a window of 5.",
    "gradient": "## gradient, the paper's rule\n\nAlpha 0.1, no budget.",
}

PREPARATION = """\
## The whole preparation

The default settings, as a server uses them: the image is resized to whole cells and once for each size of leaves, its
noise is estimated, it is cut, and the patches are normalised. *CLIP*: transformers' `CLIPImageProcessorPil`, which
resizes once. *By numba*: the compiled loops also resize, to the same bits as Pillow. The photographs were enlarged, and
have a sensor's noise. Decoding the file is not included."""

SIZES = ((640, 480), (1920, 1080), (4000, 3000))
"""(width, height) of the photographs that are prepared."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(
        prog="quadtree", description="Times partition + extract_patches against copying and a recursive peer."
    )
    parser.add_argument("--sizes", type=multiple_of_patch, nargs="+", default=[448, 896, 1344, 1792], help="pixels")
    parser.add_argument(
        "--photographs", type=read_size, nargs="+", default=SIZES, metavar="WxH", help="sizes that are wholly prepared"
    )
    parser.add_argument("--criteria", nargs="+", choices=CRITERIA, default=CRITERIA)
    parser.add_argument("--repeats", type=integer(), default=5, help="turns for each photograph (%(default)s)")
    parser.add_argument("--threads", type=integer(), default=1, help="threads of torch (%(default)s)")
    parser.add_argument("--machine", help="what the page calls the machine (default: its cores)")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder to write to (%(default)s)")
    return parse_and_run(parser, run, argv)


def run(args: argparse.Namespace) -> None:
    """Measures every criterion and size and writes the page."""
    import torch

    from scripts.bench.busy_cores import burners
    from scripts.bench.preparation_times import measure_preparation, preparation_table
    from scripts.bench.quadtree_times import measure, table

    torch.set_num_threads(args.threads)
    machine = args.machine or f"{os.cpu_count()} {platform.machine()} cores"
    facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": machine}
    parts = [INTRODUCTION.format(photographs=", ".join(PHOTOGRAPHS), repeats=args.repeats, **facts)]
    with burners() as busy:
        for criterion in args.criteria:
            rows = [measure(criterion, size, args.repeats, busy) for size in args.sizes]
            parts += [HEADINGS[criterion], table(rows)]
    prepared = [measure_preparation(size, args.repeats) for size in args.photographs]
    parts += [PREPARATION, preparation_table(prepared)]
    args.out.mkdir(parents=True, exist_ok=True)
    page = args.out / "quadtree.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
