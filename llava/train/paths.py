"""Checks that what the flags of training name is there, before a language model is loaded for minutes."""

from __future__ import annotations

from pathlib import Path

from llava.model.loading.folder import PROJECTOR_FILE
from llava.train.arguments import ParsedArguments
from llava.train.data.samples import require_samples


def check_paths(args: ParsedArguments) -> None:
    """Checks the files and folders of data, and of the projector; what they hold is checked as they are read.

    Raises:
        FileNotFoundError: one is not there.
        ValueError: one is a folder instead of a file, or is not named at all.
    """
    data = args.data
    for flag in ("data_path", "eval_data_path"):
        if (path := getattr(data, flag)) is not None:
            require_samples(path, f"--{flag}")
    for flag in ("image_folder", "eval_image_folder"):
        if (folder := getattr(data, flag)) is not None and not Path(folder).is_dir():
            raise FileNotFoundError(f"there is no image folder {folder}; name it with --{flag}")
    if data.eval_questions is not None:
        _require_file(data.eval_questions, "eval_questions", "a file of questions, as JSON lines")
    if (file := args.model.pretrain_mm_mlp_adapter) is not None:
        _require_file(file, "pretrain_mm_mlp_adapter", f"the projector's weights, {PROJECTOR_FILE}")


def _require_file(path: str, flag: str, what: str) -> None:
    if Path(path).is_dir():
        inside = Path(path) / PROJECTOR_FILE
        hint = f": {inside}" if flag == "pretrain_mm_mlp_adapter" and inside.is_file() else ""
        raise ValueError(f"--{flag} {path} is a folder; it names {what}{hint}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}; --{flag} names {what}")
