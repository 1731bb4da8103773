"""What benchmarks take pictures from, and the sizes that they may have. Imports nothing heavy."""

from __future__ import annotations

import argparse

from llava.command import integer

PATCH = 14
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
"""Photographs that ship with scikit-image."""


def multiple_of_patch(text: str) -> int:
    """Parses an image size in pixels, for argparse's `type`."""
    size = integer(PATCH)(text)
    if size % PATCH:
        raise argparse.ArgumentTypeError(f"{size} is no multiple of {PATCH} pixels")
    return size
