"""`qlip show`: prints the quadtree of an image and draws it. Needs no model."""

from __future__ import annotations

import argparse
from dataclasses import fields

from qlip.config import QLIPConfig
from qlip.cutting import ImageCutter
from qlip.pictures import open_picture
from qlip.quadtree import Leaves
from qlip.tools.draw import draw_leaves


def show_leaves(args: argparse.Namespace) -> None:
    """Prints the grid, the leaves by size and the tokens saved, and writes the overlay."""
    names = {field.name for field in fields(QLIPConfig)}
    settings = QLIPConfig(**{name: value for name, value in vars(args).items() if name in names})
    cutter = ImageCutter(args.patch_size, args.native_size)
    out = args.out or args.image.with_suffix(".leaves.png")
    if out.exists() and out.samefile(args.image):
        raise ValueError(f"--out {out} is the image itself; name another file")
    picture = open_picture(args.image)
    leaves = cutter.find_leaves(picture, settings)
    print(format_leaves(leaves, args.patch_size))
    draw_leaves(picture, leaves).save(out)
    print(f"overlay  {out}")


def format_leaves(leaves: Leaves, patch_size: int) -> str:
    """Formats the grid of a tree, its leaves by size and its number of tokens, a line each."""
    rows, cols = leaves.grid
    sizes, counts = leaves.sizes.unique(return_counts=True)
    lines = [f"grid     {rows} x {cols} cells of {patch_size} px"]
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        lines.append(f"leaves   {count:6d} of {size} x {size} cells ({size * patch_size} px)")
    share = len(leaves) / (rows * cols)
    lines.append(f"tokens   {len(leaves):6d}, against {rows * cols} of the uniform grid ({share:.1%})")
    return "\n".join(lines)
