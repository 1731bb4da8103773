"""`python -m qlip`: what QLIP makes of a picture. Needs no model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_args

from PIL import Image, UnidentifiedImageError

from qlip.config import Coarsest, Criterion, Layout, QLIPConfig
from qlip.draw import draw_leaves
from qlip.image_processing import QLIPImageProcessor, to_rgb
from qlip.quadtree import Leaves

COMMANDS = "qlip.commands"
"""Entry-point group of other packages' commands: functions that take the subparsers and add one, with its `run`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = build_parser(arguments[0] if arguments else None).parse_args(arguments)
    try:
        return options.run(options)
    except (OSError, ValueError) as error:
        print(f"qlip: {error}", file=sys.stderr)
        return 2


def build_parser(asked: str | None = None) -> argparse.ArgumentParser:
    """The command line; defaults are those of `QLIPConfig`.

    Args:
        asked: the first argument. Another package is loaded only where it names that package's command, or no command.
    """
    parser = argparse.ArgumentParser(prog="qlip", description="Content-aware quadtrees for vision transformers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("show", help="print and draw the quadtree of a picture")
    command.add_argument("image", type=Path, help="a picture that Pillow reads")
    command.add_argument("--out", type=Path, help="write the overlay here; by default IMAGE.leaves.png")
    default = QLIPConfig()
    command.add_argument("--alpha", type=float, default=default.alpha, help="split threshold (%(default)s)")
    command.add_argument(
        "--max-tokens", type=token_budget, default=default.max_tokens, help="budget, or none (%(default)s)"
    )
    command.add_argument("--image-size", type=int, help="shorter side in pixels; by default as it is")
    command.add_argument("--criterion", choices=get_args(Criterion), default=default.criterion)
    command.add_argument("--layout", choices=get_args(Layout), default=default.layout)
    command.add_argument("--coarsest", choices=get_args(Coarsest), default=default.coarsest)
    command.add_argument("--structure-size", type=int, default=default.structure_size)
    command.add_argument("--seed", type=int, default=default.seed, help="of criterion random")
    command.add_argument("--patch-size", type=int, default=14, help="pixels per side of a cell (%(default)s)")
    command.add_argument(
        "--native-size", type=int, default=336, help="image size the tower was trained on (%(default)s)"
    )
    command.set_defaults(run=show)
    add_others(commands, asked)
    return parser


def add_others(commands: Any, asked: str | None) -> None:
    """Adds the commands of other packages: the one that is asked for, or all, say for the help."""
    others = {entry.name: entry for entry in entry_points(group=COMMANDS)}
    known = asked in commands.choices or asked in others
    for name, entry in others.items():
        if name == asked or not known:
            entry.load()(commands)


def token_budget(text: str) -> int | None:
    """A budget from the command line: a number, or "none"."""
    return None if text == "none" else int(text)


def show(options: argparse.Namespace) -> int:
    """Prints the grid, the leaves by size and the tokens saved, and writes the overlay."""
    names = {field.name for field in fields(QLIPConfig)}
    config = QLIPConfig(**{name: value for name, value in vars(options).items() if name in names})
    processor = QLIPImageProcessor(options.patch_size, options.native_size, qlip=config)
    if not options.image.is_file():
        raise ValueError(f"there is no file {options.image}")
    try:
        picture = to_rgb(Image.open(options.image))
    except UnidentifiedImageError:
        raise ValueError(f"{options.image} is no picture that can be read") from None
    pixels = processor.preprocess(picture, return_tensors="pt")["pixel_values"][0]
    leaves = processor.partition(pixels)
    print(report(leaves, options.patch_size))
    out = options.out or options.image.with_suffix(".leaves.png")
    draw_leaves(picture, leaves).save(out)
    print(f"overlay  {out}")
    return 0


def report(leaves: Leaves, patch_size: int) -> str:
    """A few lines on a tree, for people."""
    rows, cols = leaves.grid
    sizes, counts = leaves.sizes.unique(return_counts=True)
    lines = [f"grid     {rows} x {cols} cells of {patch_size} px"]
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        lines.append(f"leaves   {count:6d} of {size} x {size} cells ({size * patch_size} px)")
    share = len(leaves) / (rows * cols)
    lines.append(f"tokens   {len(leaves):6d}, against {rows * cols} of the uniform grid ({share:.1%})")
    return "\n".join(lines)
