"""`qlip bias`: measures a tower over a folder of images; writes the means as JSON and as a figure."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

from qlip.config import QLIPConfig, check_count
from qlip.encoder import QLIPVisionModel
from qlip.files import check_output, replacing
from qlip.image_processing import QLIPImageProcessor
from qlip.images.pictures import find_pictures, read_picture
from qlip.mlp import CoordinateMLP
from qlip.pretrained import load_image_processor, load_projection, load_tower
from qlip.tools.bias import Row, choose_sizes, measure
from qlip.tools.bias_config import MEASURED, BiasConfig
from qlip.tools.plots import Curve, Panel, figure_path, plot_panels

LABELS = {
    "mesoscopic": "mesoscopic bias: cosine to\nnative size, no positions",
    "interpolation": "interpolation bias: norm of\nthe cosine's gradient",
}
TITLES = {"native": "own aspect ratio", "cropped": "central square"}


def report_bias(args: argparse.Namespace) -> None:
    """Measures both biases of a tower over a folder, and writes the means and a figure."""
    if args.plot is not None:
        figure_path(args.plot)
    found = find_pictures(args.images)
    for flag, out in (("--out", args.out), ("--plot", args.plot)):
        if out is not None:
            check_output(flag, out, [*found, *([] if args.mlp is None else [args.mlp])])
    config = make_config(args)
    paths = spread(found, args.limit)
    model, processor = prepare_tower(args.tower, args.mlp, args.device)
    projection = None
    if config.convention == "authors":
        projection = load_projection(args.tower, "--convention authors", "--convention ours")
        projection.to(model.position_table.device).requires_grad_(False)
    choose_sizes(model, config)
    pictures = (picture for path in tqdm(paths, "pictures", delay=2) if (picture := read_picture(path)) is not None)
    rows = measure(model, processor, pictures, config, projection)
    settings = describe_run(args, model, config, rows, len(paths))
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    results = {"settings": settings, "versions": versions, "rows": [asdict(row) for row in rows]}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(args.out) as new:
        new.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"means    {args.out}")
    if args.plot is not None:
        write_figure(rows, args.plot, settings["native_size"])
        print(f"figure   {args.plot}")


def make_config(args: argparse.Namespace) -> BiasConfig:
    """Builds the settings to measure from the flags; a quadtree's if one of its flags is given."""
    modes: list[Any] = args.modes or ["bilinear", "bicubic"] + (["mlp", "mlp-pure"] if args.mlp else [])
    given = {name: getattr(args, name) for name in ("alpha", "max_tokens", "criterion") if name in args}
    return BiasConfig(
        sizes=None if args.sizes is None else tuple(args.sizes),
        shapes=tuple(args.shapes),
        modes=tuple(modes),
        # Pixels and positions as on the uniform grid, so that the two differ by the leaves alone.
        quadtree=QLIPConfig(geometry="grid", leaf_position="centre", **given) if given else None,
        convention=args.convention,
    )


def describe_run(
    args: argparse.Namespace, model: QLIPVisionModel, config: BiasConfig, rows: Sequence[Row], files: int
) -> dict[str, Any]:
    """Builds the settings that are written beside the means; `files` were found, the unreadable ones included."""
    return {
        "tower": args.tower,
        "native_size": model.native_grid * model.config.patch_size,
        "patch_size": model.config.patch_size,
        "images": str(args.images),
        "pictures": rows[0].count,
        "skipped": files - rows[0].count,
        "convention": config.convention,
        "sizes": choose_sizes(model, config),
        "shapes": config.shapes,
        "modes": config.modes,
        "mlp": None if args.mlp is None else str(args.mlp),
        "quadtree": None if config.quadtree is None else _describe_quadtree(config.quadtree),
        "device": str(model.position_table.device),
        "dtype": str(model.position_table.dtype).removeprefix("torch."),
    }


def _describe_quadtree(settings: QLIPConfig) -> dict[str, Any]:
    """Lists the settings of a quadtree that were measured."""
    values = settings.to_dict()
    return {name: values[name] for name in MEASURED}


def prepare_tower(path: str, mlp: Path | None, device: str | None) -> tuple[QLIPVisionModel, QLIPImageProcessor]:
    """Loads a frozen tower in float32 with its prior on a device, and the processor of its images.

    Raises:
        ValueError: there is no such tower or device, or the file is not a prior, or one of another width.
    """
    try:
        probe = torch.zeros(1, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
        probe.item()  # "meta" has no values
    except (RuntimeError, AssertionError):
        here = ", ".join(["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])
        raise ValueError(f"--device is {device!r}, but this machine has {here} only") from None
    model, pixels = load_tower(path), load_image_processor(path)
    if mlp is not None:
        model.set_prior(CoordinateMLP.load(mlp))
    model.to(probe.device).requires_grad_(False)
    config = model.config
    return model, QLIPImageProcessor.from_clip(pixels, config.patch_size, config.image_size, QLIPConfig())


def spread(paths: Sequence[Path], limit: int | None) -> list[Path]:
    """Chooses `limit` paths, evenly spread over a sorted folder with all its classes; None takes all."""
    if limit is not None:
        check_count("limit", limit)
    count = min(limit or len(paths), len(paths))
    return [paths[i * len(paths) // count] for i in range(count)]


def write_figure(rows: Sequence[Row], path: str | Path, native_size: int) -> None:
    """Draws both measures over the image size, shapes side by side, a curve for each mode, into an SVG or PNG file."""
    curves: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        name = ", ".join(filter(None, (row.tiling, row.mode)))
        curves.setdefault((row.measure, row.shape), {}).setdefault(name, []).append(row)
    shapes = list(dict.fromkeys(row.shape for row in rows))

    def panel(measure: str, shape: str) -> Panel:
        drawn = [
            Curve(name, *zip(*[(row.size, row.mean, row.low, row.high) for row in points], strict=True))
            for name, points in curves[measure, shape].items()
        ]
        title = TITLES[shape] if measure == "mesoscopic" else None
        return Panel(drawn, "shorter side, pixels (dotted: native size)", LABELS[measure], title, mark=native_size)

    plot_panels(path, [[panel(measure, shape) for shape in shapes] for measure in LABELS])
