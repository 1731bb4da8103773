"""`qlip fit`: its flags and report. The training is imported when the command runs."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from qlip.command import read_name
from qlip.config import Criterion
from qlip.prior.config import (
    RECIPES,
    AlphaPer,
    FitConfig,
    Frequencies,
    Loss,
    Precision,
    Recipe,
    Shape,
    Sizes,
)

WITHOUT_IMAGES = {"tower", "out", "recipe", "init", "frequencies", "seed"}
"""Settings that have an effect without a folder of images."""


def add_fit(commands: Any) -> None:
    """Adds `qlip fit` to the subparsers; flags default to the values of `FitConfig`."""
    default = {field.name: field.default for field in fields(FitConfig)}
    command = commands.add_parser("fit", help="train the MLP prior for positions", argument_default=argparse.SUPPRESS)
    command.add_argument(
        "--tower", type=read_name, required=True, help="checkpoint of CLIP, SigLIP or DINOv2: a folder or a hub id"
    )
    command.add_argument("--out", type=Path, required=True, help="write the prior here, .safetensors")
    command.add_argument(
        "--recipe", choices=get_args(Recipe), help="settings of the paper (default) or of the authors' released script"
    )
    command.add_argument("--init", type=Path, help="weights to start from: our .safetensors, or the authors' .pt")
    command.add_argument(
        "--frequencies", choices=get_args(Frequencies), help="Fourier features without --init: ours or the authors'"
    )
    command.add_argument("--seed", type=int, help=f"({default['seed']})")
    released = RECIPES["released"]
    images = command.add_argument_group("train on images as well", argument_default=argparse.SUPPRESS)
    images.add_argument("--images", type=Path, help="folder of images, searched recursively")
    images.add_argument(
        "--random-start", dest="exact_start", action="store_false", help="start at random, as in the paper"
    )
    images.add_argument("--epochs", type=int, help=f"passes over the images ({default['epochs']})")
    images.add_argument("--steps", type=int, help="batches to train for, instead of epochs")
    images.add_argument(
        "--batch",
        type=int,
        help=f"images per step, over all processes ({default['batch']}; released {released['batch']})",
    )
    images.add_argument("--lr", type=float, help=f"highest learning rate ({default['lr']})")
    images.add_argument("--theta", type=float, help=f"weight of the grid term ({default['theta']})")
    images.add_argument(
        "--loss", choices=get_args(Loss), help="of pooled outputs (paper), or of CLIP's image embeddings (released)"
    )
    images.add_argument(
        "--criterion", choices=get_args(Criterion), help="what splits blocks: gradient (paper), random (released)"
    )
    images.add_argument(
        "--alpha", type=float, nargs=2, metavar=("LOW", "HIGH"), help=f"range of split thresholds {default['alpha']}"
    )
    images.add_argument(
        "--alpha-per", choices=get_args(AlphaPer), help="draw one for each batch (paper) or image (released)"
    )
    images.add_argument(
        "--sizes",
        choices=get_args(Sizes),
        help="of images: one shorter side per batch (paper), their own (released)",
    )
    images.add_argument("--largest-size", type=int, help="longest side drawn or kept (5/3 of the native size)")
    images.add_argument("--max-tokens", type=int, help="most tokens of an image (those of a square of that size)")
    images.add_argument("--shape", choices=get_args(Shape), help=f"whole images, or squares ({default['shape']})")
    images.add_argument("--mixed-precision", choices=get_args(Precision), help="by default as accelerate is configured")
    images.add_argument("--workers", type=int, help=f"processes that read images ({default['workers']})")
    images.add_argument("--save-every", type=int, help=f"steps between checkpoints ({default['save_every']})")
    images.add_argument("--resume", action="store_true", help="continue from the checkpoint, if there is one")
    images.add_argument("--log-dir", type=Path, help="write a TensorBoard log here")
    command.set_defaults(run=fit)


def fit(args: argparse.Namespace) -> None:
    """Runs `qlip fit`: trains and writes the prior; one process prints how well it fits."""
    values = {field.name: getattr(args, field.name) for field in fields(FitConfig) if field.name in args}
    if "init" in values and "frequencies" in values:
        raise ValueError(f"--frequencies {args.frequencies} and --init exclude each other: the weights have their own")
    if "init" in values and "exact_start" in values:
        raise ValueError("--random-start and --init exclude each other: training starts from the weights of --init")
    if "alpha" in values:
        values["alpha"] = tuple(values["alpha"])
    config = FitConfig.from_recipe(getattr(args, "recipe", "paper"), **values)
    if "images" not in values and (idle := sorted(values.keys() - WITHOUT_IMAGES)):
        flag = "random-start" if idle[0] == "exact_start" else idle[0].replace("_", "-")
        raise ValueError(f"--{flag} is for training on images; give their folder (--images), or leave it out")

    from accelerate import PartialState  # heavy, so only for settings that are allowed

    from qlip.prior.train import fit_prior

    result = fit_prior(config)
    state = PartialState()
    if state.is_main_process:
        print(f"grid         off by {result.max_error:.2e} at most, {result.mean_error:.2e} on average")
        if result.consistency is not None:
            before, after, bicubic = result.consistency
            print(f"consistency  {before:.4g} before, {after:.4g} after; bicubic interpolation {bicubic:.4g}")
        print(f"prior        {args.out}")
