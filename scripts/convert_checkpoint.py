"""Converts a checkpoint between LLaVA's own format and transformers': `python -m scripts.convert_checkpoint`.

The checkpoint's format decides the direction. The flag `qlip` and the MLP prior are kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OneLineParser, parse_and_run


def run(args: argparse.Namespace) -> None:
    """Converts the checkpoint and prints the format written."""
    from scripts.checkpoints.formats import convert

    print(f"{args.out}: {convert(args.model_path, args.out, args.model_base)} format")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="convert_checkpoint", description="Convert between LLaVA's format and transformers'.")
    parser.add_argument("--model-path", required=True, help="folder or hub id, of either format")
    parser.add_argument("--model-base", help="the language model under a projector-only or LoRA checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, empty or absent")
    return parse_and_run(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
