"""Writes a checkpoint's projector, and newline of tiles, to a separate file, as the second stage of training takes it.

`python scripts/extract_mm_projector.py --model-path MODEL --output mm_projector.bin`
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OneLineParser, parse_and_run


def extract(args: argparse.Namespace) -> None:
    """Saves the projector's tensors under LLaVA's names, `model.mm_projector.*`, and `model.image_newline` if any.

    Raises:
        ValueError: the checkpoint has no projector, or the output is a folder.
    """
    import torch

    from llava.model.deltas import read_weights
    from llava.model.loading.checkpoint import inspect
    from llava.model.loading.folder import local_folder
    from llava.model.loading.weights import read_extra_weights
    from llava.model.vision_setup import NEWLINE

    if args.output.is_dir():
        raise ValueError(f"--output {args.output} is a folder; name a file")
    checkpoint = inspect(local_folder(args.model_path))
    folder, projector = checkpoint.folder, {}
    if checkpoint.kind == "full":
        weights = read_weights(folder, "projector") | read_weights(folder, "image_newline")
    else:
        weights = read_extra_weights(checkpoint)
    for name, tensor in weights.items():
        for pattern, replacement in checkpoint.names.items():  # transformers has other names
            name = re.sub(pattern, replacement, name)
        if "mm_projector." in name or name == NEWLINE:
            projector[name] = tensor.clone()
    if not projector.keys() - {NEWLINE}:
        raise ValueError(f"{folder} holds no model.mm_projector.*")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    torch.save(projector, args.output)
    print(f"{args.output}: {', '.join(projector)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(
        prog="extract_mm_projector", description="Write a checkpoint's projector, and newline of tiles, to a file."
    )
    parser.add_argument("--model-path", required=True, help="the checkpoint: folder or hub id")
    parser.add_argument("--output", type=Path, required=True, help="file to write, say mm_projector.bin")
    return parse_and_run(parser, extract, argv)


if __name__ == "__main__":
    sys.exit(main())
