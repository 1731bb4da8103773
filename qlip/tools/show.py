"""`qlip show`: prints the quadtrees of images and draws them. Needs no model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from qlip.command import escape
from qlip.config import QLIPConfig
from qlip.cutting import ImageCutter
from qlip.files import check_not_read
from qlip.images.pictures import check_drawing_name, find_pictures, open_picture, read_picture
from qlip.quadtree import Leaves
from qlip.roots import allowed_leaf
from qlip.scores.criteria import WINDOWED
from qlip.tools.draw import draw_leaves, draw_sheet

DRAWN = ".leaves.png"
"""Ending of the files that are written by default; a folder's files with it are not read."""
TILE = 320
"""Longer side of an image in a contact sheet, in pixels."""
MOST_TILES = 400
"""Most images of a contact sheet, which then takes 150 MB; a folder may hold any number."""
LARGEST_DRAWING = 4096
"""Longer side of a single image's drawing, in pixels, if cells of 4 pixels allow; a larger PNG takes seconds."""
Find = Callable[[QLIPConfig], tuple[Tensor, Leaves]]
"""Finds one image's pixels and leaves under settings, from `ImageCutter.make_finder`."""


@dataclass(frozen=True)
class Idle:
    """What has no effect on the leaves of an image, or of several."""

    settings: frozenset[str]
    """Names of settings that are not the default."""
    one_cell: bool
    """The native size rules out all leaves but single cells."""
    spent: bool
    """The coarsest leaves take the whole budget, so that an image with detail is cut into equal pieces."""

    def __and__(self, other: Idle) -> Idle:
        """Keeps what has no effect on the images of both."""
        return Idle(self.settings & other.settings, self.one_cell and other.one_cell, self.spent and other.spent)


def show_leaves(args: argparse.Namespace) -> None:
    """Prints and draws the tree of one image, or a line for each of several images, with a contact sheet."""
    names = {field.name for field in fields(QLIPConfig)}
    settings = QLIPConfig(**{name: value for name, value in vars(args).items() if name in names})
    cutter = ImageCutter(args.patch_size, args.native_size)
    paths = list_pictures(args.images)
    single = paths == args.images and len(paths) == 1
    out = args.out or (paths[0].with_suffix(DRAWN) if single else Path(f"sheet{DRAWN}"))
    check_drawing_name("--out", out)
    check_not_read("--out", out, paths)
    if single:
        drawing, idle = show_one(paths[0], cutter, settings, args.json)
    else:
        drawing, idle = show_several(paths, args, cutter, settings)
    notes = sys.stderr if args.json else sys.stdout
    for note in explain_idle(idle, settings, args.native_size, several=not single):
        print(f"note     {note}", file=notes)
    drawing.save(out)
    print(f"overlay  {out}", file=notes)


def list_pictures(given: Sequence[Path]) -> list[Path]:
    """Replaces each folder by the images anywhere below it, without those that this command drew."""
    found: list[Path] = []
    for path in given:
        found += [file for file in find_pictures(path) if not file.name.endswith(DRAWN)] if path.is_dir() else [path]
    if not found:
        raise ValueError(f"{', '.join(map(str, given))} holds only drawings of quadtrees (*{DRAWN}); name images")
    return found


def show_one(path: Path, cutter: ImageCutter, settings: QLIPConfig, as_json: bool) -> tuple[Image.Image, Idle]:
    """Prints an image's tree; returns its drawing and what has no effect."""
    picture = open_picture(path)
    find = cutter.make_finder(picture)
    leaves = find(settings)[1]
    print(json.dumps(describe(path, leaves, cutter)) if as_json else format_leaves(leaves, cutter))
    longest = max(leaves.grid)
    cell = max(4, LARGEST_DRAWING // longest) if max(picture.size) > LARGEST_DRAWING else None
    return draw_leaves(picture, leaves, cell), find_idle(find, leaves, cutter, settings)


def show_several(
    paths: Sequence[Path], args: argparse.Namespace, cutter: ImageCutter, settings: QLIPConfig
) -> tuple[Image.Image, Idle]:
    """Prints the tokens of each image and their mean; returns a contact sheet and what has no effect on any image.

    The sheet shows the first `MOST_TILES` images.

    A file that is not an image is an error if the user names it; in a folder it is skipped with a warning.
    """
    tiles: list[tuple[str, Image.Image]] = []
    totals: list[tuple[int, int, int]] = []
    idle = Idle(frozenset(field.name for field in fields(QLIPConfig)), one_cell=True, spent=True)
    if not args.json:
        print("  tokens    CLIP  uniform  image")
    for path, picture in read_pictures(paths, args.images):
        find = cutter.make_finder(picture)
        leaves = find(settings)[1]
        counts = count_tokens(leaves, cutter)
        totals.append(counts)
        row = f"{counts[0]:8d}{counts[1]:8d}{counts[2]:9d}  {escape(str(path))}"
        print(json.dumps(describe(path, leaves, cutter)) if args.json else row)
        if len(tiles) < MOST_TILES:
            drawing = draw_leaves(picture, leaves, cell=max(1, (TILE - 1) // max(leaves.grid)))  # lines of whole pixels
            drawing.thumbnail((TILE, TILE))
            tiles.append((f"{escape(path.name)}: {counts[0]} tokens", drawing))
        idle &= find_idle(find, leaves, cutter, settings)
    if not tiles:
        raise ValueError(f"none of the {len(paths)} image files can be read")
    means = [sum(row) / len(totals) for row in zip(*totals, strict=True)]
    if not args.json:
        print(f"{means[0]:8.1f}{means[1]:8.1f}{means[2]:9.1f}  mean of {len(totals)}")
    if len(tiles) < len(totals):
        print(f"note     the sheet shows the first {len(tiles)} images", file=sys.stderr if args.json else sys.stdout)
    return draw_sheet(tiles, TILE), idle


def read_pictures(paths: Sequence[Path], named: Sequence[Path]) -> Iterator[tuple[Path, Image.Image]]:
    """Reads images one by one; of those that are not named by the user, only the ones that can be read."""
    for path in paths:
        picture = open_picture(path) if path in named else read_picture(path)
        if picture is not None:
            yield path, picture


def count_tokens(leaves: Leaves, cutter: ImageCutter) -> tuple[int, int, int]:
    """Counts an image's tokens: of its tree, of CLIP at the native size, and of the uniform grid."""
    rows, cols = leaves.grid
    return len(leaves), cutter.native_grid**2, rows * cols


def describe(path: Path, leaves: Leaves, cutter: ImageCutter) -> dict[str, Any]:
    """Builds what is known of an image's tree, ready for JSON."""
    tokens, clip, uniform = count_tokens(leaves, cutter)
    sizes, counts = leaves.sizes.unique(return_counts=True)
    return {
        "image": str(path),
        "grid": list(leaves.grid),
        "leaves": dict(zip(map(str, sizes.tolist()), counts.tolist(), strict=True)),
        "tokens": tokens,
        "clip_tokens": clip,
        "uniform_tokens": uniform,
    }


def format_leaves(leaves: Leaves, cutter: ImageCutter) -> str:
    """Formats the grid of a tree, its leaves by size and its number of tokens, a line each."""
    rows, cols = leaves.grid
    patch_size = cutter.patch_size
    sizes, counts = leaves.sizes.unique(return_counts=True)
    lines = [f"grid     {rows} x {cols} cells of {patch_size} px"]
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        lines.append(f"leaves   {count:6d} of {size} x {size} cells ({size * patch_size} px)")
    tokens, clip, uniform = count_tokens(leaves, cutter)
    lines.append(
        f"tokens   {tokens:6d}, against {uniform} of the uniform grid ({tokens / uniform:.1%}) and {clip} of CLIP at "
        f"{cutter.native_size} px ({tokens / clip:.1%})"
    )
    return "\n".join(lines)


def find_idle(find: Find, leaves: Leaves, cutter: ImageCutter, settings: QLIPConfig) -> Idle:
    """Finds what has no effect on the leaves of one image."""
    default = QLIPConfig()
    unused = set()
    for name in (field.name for field in fields(settings)):
        if getattr(settings, name) == getattr(default, name):
            continue
        other = find(replace(settings, **{name: getattr(default, name)}))[1]
        if other.grid == leaves.grid and other.boxes.tolist() == leaves.boxes.tolist():
            unused.add(name)
    one_cell = allowed_leaf(settings, leaves.grid, cutter.native_grid) == 1
    return Idle(frozenset(unused), one_cell, is_spent(find, leaves, settings))


def is_spent(find: Find, leaves: Leaves, settings: QLIPConfig) -> bool:
    """Whether the budget is the coarsest leaves', all of one size, and a few tokens more would split some."""
    budget, enough = settings.max_tokens, len(leaves) + 3  # the first leaf that is split becomes four
    if budget is None or budget >= enough or leaves.sizes.min() != leaves.sizes.max() or leaves.sizes.max() == 1:
        return False
    return len(find(replace(settings, max_tokens=enough))[1]) > len(leaves)


def explain_idle(idle: Idle, settings: QLIPConfig, native_size: int, several: bool) -> list[str]:
    """Formats what has no effect, a line each."""
    notes = [explain_setting(name, settings, several) for name in sorted(idle.settings)]
    if idle.one_cell:
        reason, larger = "longer side is at most", "an --image-size at which the longer side exceeds it"
        if settings.geometry == "grid":
            reason, larger = "shorter side is below twice", "a larger --image-size"
        notes.append(
            f"no leaf may be larger than one cell, as the {reason} the native size {native_size}; give the tower's own "
            f"--native-size, {larger}, or --coarsest any"
        )
    if idle.spent:
        budget = settings.max_tokens
        notes.append(f"--max-tokens {budget} is spent on the coarsest leaves, and none is split; give some more")
    return notes


def explain_setting(name: str, settings: QLIPConfig, several: bool) -> str:
    """Formats that a setting has no effect, and why where the settings alone say so."""
    value, default = (getattr(source, name) for source in (settings, QLIPConfig))
    flag = f"--{name.replace('_', '-')}"
    if value is False:
        flag = f"--no-{flag[2:]}"
    else:
        flag += f" {'none' if value is None else value}"
    needed = {"seed": ("random",), "structure_size": WINDOWED, "noise_floor": WINDOWED}.get(name)
    if needed and settings.criterion not in needed:
        return f"{flag} has no effect: it belongs to --criterion {' or '.join(needed)}, not {settings.criterion}"
    images = "these images" if several else "this image"
    if value is False:
        return f"{flag} has no effect on {images}"
    default = "none" if default is None else default
    return f"{flag} has no effect on {images}: the default, {default}, gives the same leaves"
