"""Flags that several commands have, and their types."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llava.utils import demo_model_path
from scripts.bench.evidence.answering.answer_log import ANSWERS_FILE
from scripts.bench.evidence.answering.scene_sets import SPLITS, series_of

if TYPE_CHECKING:
    from scripts.bench.evidence.answering.answers import Answers


def named_path(text: str) -> tuple[str, str]:
    """Parses `NAME=PATH`, for argparse's `type`."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; it must be NAME=PATH")
    return name, path


def known_split(text: str) -> str:
    """Checks the name of a split, for argparse's `type`."""
    try:
        series_of(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None
    return text


def add_split_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that takes any split."""
    parser.add_argument(
        "--split", type=known_split, default="validation", help='validation, test, or "series NUMBER" (%(default)s)'
    )


def add_published_split_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that takes a split that pages quote."""
    parser.add_argument("--split", choices=SPLITS, default="test", help="the split to take (%(default)s)")


def add_answers_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of commands that read answers; which split they take is another."""
    parser.add_argument("--answers-files", type=Path, nargs="+", default=[ANSWERS_FILE], help="files that `run` wrote")
    parser.add_argument("--model-path", default=demo_model_path(), help="checkpoint with the shipped settings")


def read_answers(options: argparse.Namespace, split: str | None = None) -> Answers:
    """Reads the answers that a command's flags name.

    Args:
        options: values of the flags of `add_answers_flags`, and of the split if there is such a flag.
        split: the split, if a command always takes the same one.
    """
    from llava.eval.sweep.grid import read_own_settings
    from scripts.bench.evidence.answering.answers import Answers

    return Answers(options.answers_files, split or options.split, read_own_settings(options.model_path))
