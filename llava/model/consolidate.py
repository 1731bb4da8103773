"""Converts a checkpoint to safetensors in float16: `python -m llava.model.consolidate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import OneLineParser, check_new_folder, parse_and_run

if TYPE_CHECKING:
    from torch import Tensor


def consolidate_ckpt(src_path: str, dst_path: str | Path) -> None:
    """Writes the checkpoint at `src_path` into the folder `dst_path`, its weights in float16.

    Raises:
        FileExistsError: the folder is not empty.
        ValueError: there are no weights, or ones that float16 does not hold, or quantised ones.
    """
    from llava.model.deltas import read_weights, write_checkpoint
    from llava.model.loading.folder import local_folder
    from llava.model.loading.quantization import refuse_quantised
    from llava.model.utils import auto_upgrade

    check_new_folder(Path(dst_path))
    source = local_folder(src_path)
    auto_upgrade(src_path)
    refuse_quantised(source)
    weights = read_weights(source)
    halves = {name: to_half(name, tensor) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    write_checkpoint(Path(dst_path), halves, source, str(src_path))


def to_half(name: str, tensor: Tensor) -> Tensor:
    """Converts a weight to float16.

    Raises:
        ValueError: it holds a value that float16 does not.
    """
    half = tensor.half()
    if half.isinf().any() and not tensor.isinf().any():
        raise ValueError(f"{name} holds values up to {tensor.abs().max():g}; float16 holds up to 65504")
    return half


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = OneLineParser(prog="consolidate", description="Convert a checkpoint to float16.")
    parser.add_argument("--src", required=True, help="the checkpoint: folder or hub id")
    parser.add_argument("--dst", type=Path, required=True, help="folder to write")
    return parse_and_run(parser, run, argv)


def run(args: argparse.Namespace) -> None:
    """Runs the command with parsed flags."""
    consolidate_ckpt(args.src, args.dst)
    print(f"{args.dst}: {args.src} in float16")


if __name__ == "__main__":
    sys.exit(main())
