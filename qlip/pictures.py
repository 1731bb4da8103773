"""Finds and reads image files, with Pillow and numpy only."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path

from PIL import Image

from qlip.rgb import to_rgb

logger = logging.getLogger(__name__)

BROKEN = (
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders raise over a file that is no image, or is damaged."""


def find_pictures(folder: str | Path) -> list[Path]:
    """Finds the files anywhere below a folder whose suffix is that of an image format, sorted.

    Raises:
        ValueError: there is no such folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    kinds = Image.registered_extensions()
    paths = sorted(path for path in folder.rglob("*") if kinds.get(path.suffix.lower()) in Image.OPEN)
    if not paths:
        raise ValueError(f"there are no images in {folder}")
    return paths


def open_picture(path: str | Path) -> Image.Image:
    """Reads a file as an upright RGB image.

    Raises:
        ValueError: there is no such file, or it can't be read as an image.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}")
    try:
        with Image.open(path) as picture:
            return to_rgb(picture)
    except (*BROKEN, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} can't be read as an image: {error}") from None


def read_picture(path: Path) -> Image.Image | None:
    """Reads a file as `open_picture` does; logs a warning and returns None if it can't be read."""
    try:
        return open_picture(path)
    except ValueError as error:
        logger.warning("skipped: %s", error)
        return None


def crop_square(picture: Image.Image) -> Image.Image:
    """Crops an image to its central square."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))
