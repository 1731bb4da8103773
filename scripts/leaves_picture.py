"""Draws README's first picture and fills in its numbers: `python -m scripts.leaves_picture`.

A photograph as CLIP gets it and as QLIP gets it at growing numbers of tokens; below each, the part of it that QLIP cuts
finest, enlarged, from the pixels that the tower gets. Writes docs/leaves.jpg and the text between README's marks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import OneLineParser, parse_and_run

if TYPE_CHECKING:
    from PIL import Image

    from qlip import QLIPConfig
    from qlip.cutting import ImageCutter

PHOTOGRAPH = "rocket"
BUDGETS = (64, 144, 288, 576)
CROP = (8, 12)
"""Rows and columns, in cells of the finest tree, of the part that is enlarged."""
WIDTH, GAP, CAPTION, LARGE = 300, 10, 28, 15
"""Width of a panel, space between panels, height of a caption and of its letters, in pixels."""
MARK = "leaves"
TEXT = """\
The photograph ({licence}) has {width} x {height} pixels. CLIP shrinks it to {native} pixels
and cuts {clip} equal pieces, one visual token each. QLIP makes large pieces of the sky and small ones of the rocket and
the lights: here {budgets} tokens, against {uniform} of the uniform grid at the same resolution.
Below is the part with the finest pieces, as each tower gets it:
{most} tokens keep {times:.1f} times CLIP's resolution there."""


@dataclass(frozen=True)
class View:
    """What a tower gets of the photograph."""

    tokens: int
    whole: Image.Image
    """The photograph with the lines of its leaves."""
    pixels: Image.Image
    """The pixels of all leaves, each enlarged to its leaf's place."""


def cut_photograph(picture: Image.Image, cutter: ImageCutter, settings: QLIPConfig) -> tuple[View, tuple[int, int]]:
    """Cuts the photograph; the view, and (row, col) of the window of `CROP` cells with the most leaves."""
    import numpy as np
    import torch
    from PIL import Image

    from qlip import draw_leaves

    cut = cutter.prepare(picture, settings)
    side, (rows, cols) = cutter.patch_size, cut.leaves.grid
    mean, std = (torch.tensor(values)[:, None, None] for values in (cutter.mean, cutter.std))
    levels = ((cut.patches * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    pixels = Image.new("RGB", (cols * side, rows * side))
    corners = np.zeros((rows, cols))
    for (row, col, size), patch in zip(cut.leaves.boxes.tolist(), levels, strict=True):
        block = Image.fromarray(patch).resize((size * side, size * side), Image.Resampling.BICUBIC)
        pixels.paste(block, (col * side, row * side))
        corners[row, col] = 1
    counts = np.lib.stride_tricks.sliding_window_view(corners, CROP).sum((2, 3))
    row, col = np.unravel_index(counts.argmax(), counts.shape)
    whole = draw_leaves(picture, cut.leaves, cell=2 * WIDTH // cols, width=1)
    return View(len(cut.leaves), whole, pixels), (int(row), int(col))


def shrink_for_clip(picture: Image.Image, cutter: ImageCutter) -> View:
    """Resizes the photograph as CLIP's processor does in LLaVA, where it is padded to a square."""
    from PIL import Image

    scale = cutter.native_size / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    return View(cutter.native_grid**2, picture, picture.resize(size, Image.Resampling.BICUBIC))


def draw_strip(views: Sequence[tuple[str, View]], box: tuple[float, float, float, float]) -> Image.Image:
    """Draws the views beside each other, below each its enlarged part.

    Args:
        views: caption and view.
        box: left, top, right and bottom of the part, as shares of the photograph.
    """
    from PIL import Image, ImageDraw, ImageFont

    first = views[0][1].whole
    height = round(WIDTH * first.height / first.width)
    part = round(WIDTH * CROP[0] / CROP[1])
    strip = Image.new("RGB", (len(views) * (WIDTH + GAP) - GAP, CAPTION + height + GAP + part), (255, 255, 255))
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(LARGE)
    for place, (caption, view) in enumerate(views):
        left = place * (WIDTH + GAP)
        pen.text((left, 4), caption, (0, 0, 0), font)
        whole = view.whole.resize((WIDTH, height), Image.Resampling.LANCZOS)
        edges = (box[0] * WIDTH, box[1] * height, box[2] * WIDTH, box[3] * height)
        ImageDraw.Draw(whole).rectangle(edges, outline=(255, 210, 0), width=2)
        strip.paste(whole, (left, CAPTION))
        across, down = view.pixels.size
        frame = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
        enlarged = view.pixels.resize((WIDTH, part), Image.Resampling.BICUBIC, box=frame)
        strip.paste(enlarged, (left, CAPTION + height + GAP))
    return strip


def run(options: argparse.Namespace) -> None:
    """Writes the picture and the text."""
    from PIL import Image

    from playground.photographs import SPLITS, read_photograph
    from qlip import QLIPConfig
    from qlip.cutting import ImageCutter
    from scripts.bench.evidence.pages.fill import fill_page

    (photograph,) = (item for split in SPLITS.values() for item in split if item.name == PHOTOGRAPH)
    picture, cutter = Image.fromarray(read_photograph(photograph)), ImageCutter()
    views = [shrink_for_clip(picture, cutter)]
    for budget in BUDGETS:
        settings = QLIPConfig(max_tokens=budget, alpha=0, coarsest="any", geometry="native")
        view, (row, col) = cut_photograph(picture, cutter, settings)
        views.append(view)
    cols, rows = (length // cutter.patch_size for length in views[-1].pixels.size)
    captions = [f"CLIP, {views[0].tokens} tokens", *(f"QLIP, {view.tokens} tokens" for view in views[1:])]
    box = (col / cols, row / rows, (col + CROP[1]) / cols, (row + CROP[0]) / rows)
    draw_strip(list(zip(captions, views, strict=True)), box).save(options.out, quality=88, optimize=True)
    budgets = ", ".join(str(view.tokens) for view in views[1:-1]) + f" and {views[-1].tokens}"
    text = TEXT.format(
        licence=photograph.licence,
        width=picture.width,
        height=picture.height,
        native=cutter.native_size,
        clip=views[0].tokens,
        budgets=budgets,
        uniform=rows * cols,
        most=views[-1].tokens,
        times=views[-1].pixels.width / views[0].pixels.width,
    )
    fill_page(options.readme, {MARK: text}, partly=True)
    print(f"{options.out}: CLIP, and QLIP by {budgets} tokens; {options.readme} has the numbers")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="leaves_picture", description="Draw README's first picture and fill in its numbers.")
    parser.add_argument("--out", type=Path, default=Path("docs/leaves.jpg"), help="the picture")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="the page with the marks")
    return parse_and_run(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
