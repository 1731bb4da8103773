"""Converts a checkpoint to safetensors in float16: `python -m llava.model.consolidate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OneLineParser, parse_and_run


def consolidate_ckpt(src_path: str, dst_path: str | Path) -> None:
    """Writes the checkpoint at `src_path` into the folder `dst_path`, its weights in float16.

    Raises:
        ValueError: there are no weights, or the folder is not empty.
    """
    from llava.model.deltas import check_empty, read_weights, write_checkpoint
    from llava.model.loading.checkpoint import local_folder
    from llava.model.utils import auto_upgrade

    check_empty(Path(dst_path))
    auto_upgrade(src_path)
    source = local_folder(src_path)
    weights = read_weights(source)
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    write_checkpoint(Path(dst_path), halves, source)


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
