"""Writes what a fine-tuned model adds to its base model: `python -m llava.model.make_delta`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.command import OneLineParser, check_new_folder, parse_and_run


def make_delta(
    base_model_path: str, target_model_path: str, delta_path: str | Path, hub_repo_id: str | None = None
) -> None:
    """Writes target minus base into the folder `delta_path`, and uploads it to `hub_repo_id` if that is given.

    Raises:
        FileExistsError: the folder is not empty.
        ValueError: the target has another base, or is in transformers' format, or one of them is quantised or
            incomplete.
    """
    from llava.model.deltas import add_base, write_checkpoint
    from llava.model.loading.files import read_json
    from llava.model.loading.folder import local_folder
    from llava.model.utils import auto_upgrade

    check_new_folder(Path(delta_path))
    target = local_folder(target_model_path)
    auto_upgrade(target_model_path)
    if "vision_config" in read_json(target / "config.json"):
        raise ValueError(f"{target_model_path} is in transformers' format; convert it (scripts.convert_checkpoint)")
    weights = add_base(target, local_folder(base_model_path), -1)
    write_checkpoint(Path(delta_path), weights, target, str(target_model_path))
    if hub_repo_id is not None:
        from huggingface_hub import HfApi

        hub = HfApi()
        hub.create_repo(hub_repo_id, exist_ok=True)
        hub.upload_folder(repo_id=hub_repo_id, folder_path=delta_path)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = OneLineParser(prog="make_delta", description="Write what a fine-tuned model adds to its base model.")
    parser.add_argument("--base-model-path", required=True, help="the base model: folder or hub id")
    parser.add_argument("--target-model-path", required=True, help="the fine-tuned model: folder or hub id")
    parser.add_argument("--delta-path", type=Path, required=True, help="folder to write")
    parser.add_argument("--hub-repo-id", help="hub repository to upload the delta to")
    return parse_and_run(parser, run, argv)


def run(args: argparse.Namespace) -> None:
    """Runs the command with parsed flags."""
    make_delta(args.base_model_path, args.target_model_path, args.delta_path, args.hub_repo_id)
    print(f"{args.delta_path}: {args.target_model_path} without {args.base_model_path}")


if __name__ == "__main__":
    sys.exit(main())
