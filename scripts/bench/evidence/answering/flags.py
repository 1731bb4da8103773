"""Types of flags that several commands have."""

from __future__ import annotations

import argparse

from scripts.bench.evidence.answering.scene_sets import series_of


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
