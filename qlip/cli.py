"""`python -m qlip`: show a quadtree, which needs no model; measure a tower's biases; train a prior for one."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.metadata import entry_points
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn, get_args

import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from tqdm import tqdm

from qlip.backbones.pretrained import load_tower
from qlip.config import Coarsest, Criterion, Layout, QLIPConfig
from qlip.encoder import QLIPVisionModel
from qlip.image_processing import QLIPImageProcessor
from qlip.mlp import CoordinateMLP
from qlip.prior.command import add_fit
from qlip.prior.pictures import UNREADABLE, Shape, find_pictures, read_picture
from qlip.quadtree import Leaves
from qlip.rgb import to_rgb
from qlip.tools.draw import draw_leaves

COMMANDS = "qlip.commands"
"""Entry-point group of other packages' commands: functions that take the subparsers and add one, with its `run`."""


USER_ERRORS = (ValueError, TypeError, OSError, ImportError, RuntimeError, SafetensorError, UnpicklingError)
"""What a wrong flag, file or machine raises; anything else is a fault of the program and keeps its traceback."""


class OneLineParser(argparse.ArgumentParser):
    """Reports a wrong flag in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; an error that is the user's ends in one line on stderr and exit status 2, Ctrl-C in 130."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = build_parser(arguments[0] if arguments else None).parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        return 130
    except USER_ERRORS as error:
        print(f"qlip: {format_error(error)}", file=sys.stderr)
        return 2


def format_error(error: Exception) -> str:
    """One line; of an error with the traceback of a process that read pictures, the last line says what it was."""
    text = str(error)
    if text.startswith("Caught ") and " in DataLoader worker process " in text:
        text = text.strip().splitlines()[-1]
    return " ".join(text.split()) or type(error).__name__


def build_parser(asked: str | None = None) -> argparse.ArgumentParser:
    """The command line; defaults are those of `QLIPConfig`.

    Args:
        asked: the first argument. Another package is loaded only where it names that package's command, or no command.
    """
    parser = OneLineParser(prog="qlip", description="Content-aware quadtrees for vision transformers.")
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
    add_bias(commands)
    add_fit(commands)
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
    out = options.out or options.image.with_suffix(".leaves.png")
    if out.exists() and out.samefile(options.image):
        raise ValueError(f"--out {out} is the picture itself; name another file")
    try:
        picture = to_rgb(Image.open(options.image))
    except UNREADABLE as error:
        raise ValueError(f"{options.image} is no picture that can be read: {error}") from None
    pixels = processor.preprocess(picture, return_tensors="pt")["pixel_values"][0]
    leaves = processor.partition(pixels)
    print(report(leaves, options.patch_size))
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


def add_bias(commands: Any) -> None:
    """Adds `qlip bias` to the subparsers."""
    command = commands.add_parser("bias", help="measure mesoscopic and interpolation bias of a tower")
    command.add_argument("--tower", required=True, help="CLIP or SigLIP checkpoint: a folder or a hub id")
    command.add_argument("--images", type=Path, required=True, help="folder of pictures, searched recursively")
    command.add_argument("--out", type=Path, required=True, help="write settings and means here, as JSON")
    command.add_argument("--plot", type=Path, help="write a figure here, .svg or .png")
    command.add_argument("--limit", type=int, help="measure this many pictures, evenly spread over the folder")
    command.add_argument(
        "--sizes", type=int, nargs="+", help="shorter sides in pixels; by default the paper's 224 + 28 k of 336"
    )
    command.add_argument("--shapes", nargs="+", choices=get_args(Shape), default=get_args(Shape))
    command.add_argument(
        "--modes", nargs="+", help="bilinear, bicubic, mlp, mlp-pure; by default the first two, and all with --mlp"
    )
    command.add_argument("--mlp", type=Path, help="weights of the MLP prior: our .safetensors, or the authors' .pt")
    quadtree = command.add_argument_group("measure a quadtree as well", argument_default=argparse.SUPPRESS)
    quadtree.add_argument("--alpha", type=float, help="its split threshold")
    quadtree.add_argument("--max-tokens", type=token_budget, help="its budget, or none")
    quadtree.add_argument("--criterion", choices=get_args(Criterion), help="what scores a block")
    command.add_argument("--device", help="cpu, cuda, cuda:1 (default: the best this machine has)")
    command.set_defaults(run=bias)


def bias(options: argparse.Namespace) -> int:
    """Measures both biases of a tower over a folder, and writes the means and a figure."""
    from qlip.tools.bias import BiasConfig, choose_sizes, measure, spread, write_figure
    from qlip.tools.plots import check_suffix  # both bring matplotlib, which no other command needs

    if options.plot is not None:
        check_suffix(options.plot)
    modes: list[Any] = options.modes or ["bilinear", "bicubic"] + (["mlp", "mlp-pure"] if options.mlp else [])
    given = {name: getattr(options, name) for name in ("alpha", "max_tokens", "criterion") if name in options}
    config = BiasConfig(
        sizes=None if options.sizes is None else tuple(options.sizes),
        shapes=tuple(options.shapes),
        modes=tuple(modes),
        quadtree=QLIPConfig(**given) if given else None,
    )
    paths = spread(find_pictures(options.images), options.limit)
    model, processor = prepare_tower(options.tower, options.mlp, options.device)
    sizes = choose_sizes(model, config)
    options.out.parent.mkdir(parents=True, exist_ok=True)  # now, not when all is measured
    pictures = (picture for path in tqdm(paths, "pictures") if (picture := read_picture(path)) is not None)
    rows = measure(model, processor, pictures, config)
    settings = {
        "tower": options.tower,
        "native_size": model.native_grid * model.config.patch_size,
        "patch_size": model.config.patch_size,
        "images": str(options.images),
        "pictures": rows[0].count,
        "skipped": len(paths) - rows[0].count,
        "sizes": sizes,
        "shapes": config.shapes,
        "modes": config.modes,
        "mlp": None if options.mlp is None else str(options.mlp),
        "quadtree": None if config.quadtree is None else config.quadtree.to_dict(),
        "device": str(model.position_table.device),
        "dtype": str(model.position_table.dtype).removeprefix("torch."),
    }
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    results = {"settings": settings, "versions": versions, "rows": [asdict(row) for row in rows]}
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"means    {options.out}")
    if options.plot is not None:
        write_figure(rows, options.plot, settings["native_size"])
        print(f"figure   {options.plot}")
    return 0


def prepare_tower(path: str, mlp: Path | None, device: str | None) -> tuple[QLIPVisionModel, QLIPImageProcessor]:
    """A frozen tower in float32 with its prior, on a device, and the processor of its pictures.

    Raises:
        ValueError: there is no such tower or device, or the prior is none or of another width.
    """
    try:
        probe = torch.zeros(1, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
        probe.item()  # "meta" has no values
    except (RuntimeError, AssertionError):
        here = ", ".join(["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])
        raise ValueError(f"--device is {device!r}, but this machine has {here} only") from None
    model, pixels = load_tower(path)
    if mlp is not None:
        model.set_prior(CoordinateMLP.load(mlp))
    model.to(probe.device).requires_grad_(False)
    return model, QLIPImageProcessor.from_clip(pixels, model.config.patch_size, QLIPConfig())
