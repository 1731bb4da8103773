"""What benchmarks take pictures from, and the sizes that they may have. Imports nothing heavy."""

from __future__ import annotations

import argparse
import re

from llava.command import integer

PATCH = 14
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
"""Photographs that ship with scikit-image."""


def multiple_of_patch(text: str) -> int:
    """Parses an image size in pixels, for argparse's `type`."""
    size = integer(PATCH)(text)
    if size % PATCH:
        raise argparse.ArgumentTypeError(f"{size} is not a multiple of {PATCH} pixels")
    return size


def read_size(text: str) -> tuple[int, int]:
    """Reads WIDTHxHEIGHT.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    if not (found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write WIDTHxHEIGHT in pixels, such as 1280x960")
    return int(found[1]), int(found[2])
