"""`qlip`: shows a quadtree, which needs no model; measures a tower's biases; trains a prior for one.

Only the flags are here: what a command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_args

from qlip import __version__
from qlip.command import OneLineParser, read_name, run_command
from qlip.config import Coarsest, Criterion, Geometry, Layout, QLIPConfig, SplitOrder
from qlip.prior.command import add_fit
from qlip.prior.config import Shape

COMMANDS = "qlip.commands"
"""Entry-point group of other packages' commands: functions that take the subparsers and add one, with its `run`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command."""
    argv = sys.argv[1:] if argv is None else argv
    args = make_parser(argv[0] if argv else None).parse_args(argv)
    return run_command("qlip", lambda: args.run(args))


def make_parser(asked: str | None = None) -> argparse.ArgumentParser:
    """Builds the parser.

    Args:
        asked: the first argument. Unless it is one of ours, the other package that provides it is loaded, or all.
    """
    parser = OneLineParser(prog="qlip", description="Content-aware quadtrees for vision transformers.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_show(commands)
    add_bias(commands)
    add_fit(commands)
    add_others(commands, asked)
    return parser


def add_others(commands: Any, asked: str | None) -> None:
    """Adds the requested command of another package; all of them for --help or an unknown name."""
    if asked in commands.choices:
        return
    others = {entry.name: entry for entry in entry_points(group=COMMANDS)}
    for entry in [others[asked]] if asked in others else others.values():
        entry.load()(commands)


def add_show(commands: Any) -> None:
    """Adds `qlip show` to the subparsers; defaults are those of `QLIPConfig`."""
    command = commands.add_parser("show", help="print and draw the quadtrees of images")
    command.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="image files that Pillow reads, or folders of them"
    )
    command.add_argument(
        "--out",
        type=Path,
        help="write the overlay here, of several images a contact sheet; by default IMAGE.leaves.png, sheet.leaves.png",
    )
    command.add_argument("--alpha", type=float, default=QLIPConfig.alpha, help="split threshold (%(default)s)")
    command.add_argument(
        "--max-tokens", type=token_budget, default=QLIPConfig.max_tokens, help="budget, or none (%(default)s)"
    )
    command.add_argument(
        "--split-order",
        choices=get_args(SplitOrder),
        default=QLIPConfig.split_order,
        help="which blocks a budget splits first: by score times side, or by score alone (%(default)s)",
    )
    command.add_argument(
        "--image-size",
        type=int,
        help="shorter side in pixels that the image is resized to; with --geometry native it only chooses how often "
        "CLIP's cells are halved, as for an image of this shorter side",
    )
    command.add_argument("--criterion", choices=get_args(Criterion), default=QLIPConfig.criterion)
    command.add_argument("--geometry", choices=get_args(Geometry), default=QLIPConfig.geometry)
    command.add_argument("--layout", choices=get_args(Layout), default=QLIPConfig.layout)
    command.add_argument("--coarsest", choices=get_args(Coarsest), default=QLIPConfig.coarsest)
    command.add_argument("--structure-size", type=int, default=QLIPConfig.structure_size)
    command.add_argument(
        "--noise-floor",
        action=argparse.BooleanOptionalAction,
        default=QLIPConfig.noise_floor,
        help="do not cut the image's noise like detail (default: on)",
    )
    command.add_argument("--seed", type=int, default=QLIPConfig.seed, help="of criterion random")
    command.add_argument("--patch-size", type=int, default=14, help="pixels per side of a cell (%(default)s)")
    command.add_argument(
        "--native-size",
        type=int,
        default=336,
        help="side in pixels of the square that the tower was trained on, to which CLIP downsizes an image: 336 for "
        "LLaVA-1.5, 112 for the embedded model. CLIP takes (native size / patch size) squared tokens, and with "
        "--coarsest native no leaf is larger than one of its cells (%(default)s)",
    )
    command.add_argument(
        "--json", action="store_true", help="print a line of JSON for each image instead of text; notes go to stderr"
    )
    command.set_defaults(run=show)


def show(args: argparse.Namespace) -> None:
    """Runs `qlip show`."""
    from qlip.tools.show import show_leaves

    show_leaves(args)


def add_bias(commands: Any) -> None:
    """Adds `qlip bias` to the subparsers."""
    command = commands.add_parser("bias", help="measure mesoscopic and interpolation bias of a tower")
    command.add_argument(
        "--tower", type=read_name, required=True, help="checkpoint of CLIP, SigLIP or DINOv2: a folder or a hub id"
    )
    command.add_argument("--images", type=Path, required=True, help="folder of images, searched recursively")
    command.add_argument("--out", type=Path, required=True, help="write settings and means here, as JSON")
    command.add_argument("--plot", type=Path, help="write a figure here, .svg or .png")
    command.add_argument("--limit", type=int, help="measure this many images, evenly spread over the folder")
    command.add_argument(
        "--sizes", type=int, nargs="+", help="shorter sides in pixels; by default the paper's 224 + 28 k of 336"
    )
    command.add_argument("--shapes", nargs="+", choices=get_args(Shape), default=get_args(Shape))
    command.add_argument(
        "--modes", nargs="+", help="bilinear, bicubic, mlp, mlp-pure; by default the first two, and all with --mlp"
    )
    command.add_argument(
        "--convention",
        choices=("ours", "authors"),
        default="ours",
        help="of the measures: ours, or the authors' released code's (%(default)s)",
    )
    command.add_argument("--mlp", type=Path, help="weights of the MLP prior: our .safetensors, or the authors' .pt")
    quadtree = command.add_argument_group("measure a quadtree as well", argument_default=argparse.SUPPRESS)
    quadtree.add_argument("--alpha", type=float, help="its split threshold")
    quadtree.add_argument("--max-tokens", type=token_budget, help="its budget, or none")
    quadtree.add_argument("--criterion", choices=get_args(Criterion), help="what scores a block")
    command.add_argument("--device", help="cpu, cuda, cuda:1; by default a GPU if there is one")
    command.set_defaults(run=bias)


def bias(args: argparse.Namespace) -> None:
    """Runs `qlip bias`."""
    from qlip.tools.bias_report import report_bias

    report_bias(args)


def token_budget(text: str) -> int | None:
    """Reads a budget from the command line: a number, or "none"."""
    if text == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; it must be an integer, or none") from None
