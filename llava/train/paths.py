"""Checks that what the flags of training name is there, before a language model is loaded for minutes."""

from __future__ import annotations

import logging
from pathlib import Path

from llava.eval.run.inputs.questions import read_lines
from llava.model.loading.folder import PROJECTOR_FILE
from llava.train.arguments import ParsedArguments
from llava.train.data.samples import find_relative_image, require_samples

logger = logging.getLogger(__name__)


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
    if data.eval_questions is not None:
        _require_file(data.eval_questions, "eval_questions", "a file of questions, as JSON lines")
    check_image_folders(args)
    if (file := args.model.pretrain_mm_mlp_adapter) is not None:
        _require_file(file, "pretrain_mm_mlp_adapter", f"the projector's weights, {PROJECTOR_FILE}")


def check_image_folders(args: ParsedArguments) -> None:
    """Checks the folders of images where samples or questions name images in them; warns where none does.

    Files are read, up to the first such image, only where a folder is missing.

    Raises:
        FileNotFoundError: a folder is not there.
        ValueError: a file of samples or questions is damaged.
    """
    evaluated = {"eval_data_path", "eval_questions"}
    has_own = args.data.eval_image_folder is not None
    for flag, users in (
        ("image_folder", {"data_path"} if has_own else {"data_path"} | evaluated),
        ("eval_image_folder", evaluated),
    ):
        folder = getattr(args.data, flag)
        if folder is None or Path(folder).is_dir():
            continue
        for user in sorted(users):
            path = getattr(args.data, user)
            if path is not None and _needs_folder(user, path, Path(folder)):
                raise FileNotFoundError(
                    f"there is no image folder {folder}; name it with --{flag}: the images of --{user} are in it"
                )
        logger.warning("there is no image folder %s (--%s); nothing that is read names an image in it", folder, flag)


def _needs_folder(flag: str, path: str, folder: Path) -> bool:
    """Whether the samples or questions that a flag names have images in a folder."""
    if flag != "eval_questions":
        return find_relative_image(path, f"--{flag}") is not None
    questions = read_lines(Path(path), folder, with_answers=False)
    return any(isinstance(question.image, Path) for question in questions)  # others are `data:` URLs


def _require_file(path: str, flag: str, what: str) -> None:
    if Path(path).is_dir():
        inside = Path(path) / PROJECTOR_FILE
        hint = f": {inside}" if flag == "pretrain_mm_mlp_adapter" and inside.is_file() else ""
        raise ValueError(f"--{flag} {path} is a folder; it names {what}{hint}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}; --{flag} names {what}")
