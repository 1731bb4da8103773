"""Adds a delta to its base model; the result is the fine-tuned model: `python -m llava.model.apply_delta`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OneLineParser, check_new_folder, parse_and_run


def apply_delta(base_model_path: str, target_model_path: str | Path, delta_path: str) -> None:
    """Writes base plus delta into the folder `target_model_path`, with the delta's configuration and tokenizer.

    Raises:
        FileExistsError: the folder is not empty.
        ValueError: the delta has another base, or one of them is quantised or incomplete.
    """
    from llava.model.deltas import add_base, write_checkpoint
    from llava.model.loading.folder import local_folder

    check_new_folder(Path(target_model_path))
    delta = local_folder(delta_path)
    write_checkpoint(Path(target_model_path), add_base(delta, local_folder(base_model_path), 1), delta, str(delta_path))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = OneLineParser(prog="apply_delta", description="Add a delta to its base model.")
    parser.add_argument("--base-model-path", required=True, help="the base model: folder or hub id")
    parser.add_argument("--target-model-path", type=Path, required=True, help="folder to write")
    parser.add_argument("--delta-path", required=True, help="the delta: folder or hub id")
    return parse_and_run(parser, run, argv)


def run(args: argparse.Namespace) -> None:
    """Runs the command with parsed flags."""
    apply_delta(args.base_model_path, args.target_model_path, args.delta_path)
    print(f"{args.target_model_path}: {args.base_model_path} and {args.delta_path}")


if __name__ == "__main__":
    sys.exit(main())
