"""Finds, reads and decodes image files, with Pillow and numpy only: the one place that decodes them.

Every file may be hostile: its structure and declared size are checked before a pixel is decoded, and errors never
repeat a library's message.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from qlip.images.limits import (
    DEFAULT_LIMITS,
    SHAPELESS_LIMITS,
    ImageError,
    ImageLimits,
    check_scans,
    check_structure,
)
from qlip.images.rgb import to_rgb

logger = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that LLaVA opens."""
MORE_FORMATS = (*FORMATS, "AVIF", "DIB", "ICO", "JPEG2000", "PCX", "SGI", "TGA")
"""Formats that the method's own commands open: all that Pillow decodes in C, from one decoder."""
SIGNATURES = {b"\xff\xd8": "JPEG", b"GIF8": "GIF", b"BM": "BMP", b"II": "TIFF", b"MM": "TIFF", b"P": "PPM"}
"""How files begin -> their format, to name a truncated one."""
UNREAD = (".heic", ".heif", ".hif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf")
"""File endings of photographs that Pillow cannot open without a plugin."""
MAX_BYTES_IN_PYTHON = 2**24
"""Most bytes, and most pixels, of a file whose decoder Pillow has in Python; some seconds of work."""

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
"""What Pillow's decoders raise over a file that is not an image, or is damaged."""


def check_drawing_name(flag: str, path: Path) -> None:
    """Raises ValueError unless a file can be written, and has the ending of a format in which Pillow writes images."""
    Image.init()
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"{flag} {path}: use the ending of an image format, for example .png")
    if not path.parent.is_dir():
        raise ValueError(f"{flag} {path}: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{flag} {path}: the file, or its folder, is read-only")


def walk(folder: Path) -> Iterator[Path]:
    """Lists the files anywhere below a folder; linked folders are followed, but each is entered once."""
    entered = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(here)) in entered:
            folders.clear()
            continue
        entered.add(place)
        yield from (Path(here, name) for name in files)


def find_pictures(folder: str | Path) -> list[Path]:
    """Finds the files anywhere below a folder whose suffix is that of an image format, sorted.

    Logs a warning where the folder has photographs in formats that are not read.

    Raises:
        ValueError: there is no such folder, or no image in it that is read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    kinds = Image.registered_extensions()
    files = list(walk(folder))
    paths = sorted(path for path in files if kinds.get(path.suffix.lower()) in Image.OPEN)
    unread = [path.name for path in files if path.suffix.lower() in UNREAD and path.suffix.lower() not in kinds]
    more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
    why = f"not read: {unread[0]}{more}; convert to JPEG" if unread else ""
    if not paths:
        raise ValueError(f"there are no images in {folder}{why and f': {why}'}")
    if why:
        logger.warning("%s: %s", folder, why)
    return paths


def decode_image(
    data: bytes,
    limits: ImageLimits = DEFAULT_LIMITS,
    before_pixels: Callable[[int], None] = lambda pixels: None,
    formats: tuple[str, ...] = FORMATS,
) -> Image.Image:
    """Decodes an image file.

    Args:
        data: The file.
        limits: On the image.
        before_pixels: Called with width x height when the file is within the limits, before decoding.
        formats: Pillow's names of those that are allowed.

    Returns:
        The first frame, upright, RGB; transparency is laid on white.

    Raises:
        ImageError: the file is not an image, broken, truncated, or beyond the limits.
        MemoryError: there is not enough memory.
    """
    limits.check_bytes(len(data))
    if data[4:8] == b"ftyp" and "AVIF" not in formats:  # phones write these
        raise ImageError("not a readable image: HEIC, AVIF and videos are not supported; save it as JPEG or PNG")
    with convert_errors(limits, formats, data):
        check_structure(data)
        with Image.open(BytesIO(data), formats=formats) as image:
            limits.check_size(*image.size)
            pixels = image.width * image.height
            check_scans(data, pixels)
            if image.tile and image.tile[0][0] in Image.DECODERS and max(pixels, len(data)) > MAX_BYTES_IN_PYTHON:
                raise ImageError(
                    f"the {image.format} file is of a kind that takes long to decode, such as text or runs of pixels; "
                    f"at most {MAX_BYTES_IN_PYTHON:,} bytes and pixels of it are allowed; save it as PNG"
                )
            before_pixels(pixels)
            return to_rgb(image)


@contextmanager
def convert_errors(limits: ImageLimits, formats: tuple[str, ...] = FORMATS, data: bytes = b"") -> Iterator[None]:
    """Converts Pillow's errors for broken or too large files to ImageError; `data` is the file."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"the image has more than {limits.max_pixels:,} pixels") from None
    except BROKEN as error:
        if (name := find_truncated(error, data)) is not None:
            raise ImageError(f"not a readable image: the {name} file is truncated") from None
        # Pillow's message may hold memory addresses, so ours names only the kind of the failure.
        kind = "" if isinstance(error, UnidentifiedImageError) else f" ({type(error).__name__})"
        raise ImageError(f"not a readable image{kind}; it is broken, or not one of {', '.join(formats)}") from None


def find_truncated(error: BaseException, data: bytes) -> str | None:
    """Finds the format of a file that Pillow could not read since its end is missing; None where that is not the cause.

    Pillow gives no reason for WebP failures, so the length in the file's header is compared.
    """
    if data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        return "WEBP"
    if "truncated" not in str(error).lower():
        return None
    return next((name for start, name in SIGNATURES.items() if data.startswith(start)), "image")


class PixelLimit:
    """Lifts Pillow's process-wide pixel limit, which is lower than ours, while any thread is decoding."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lifted = 0
        self._limit: int | None = None

    @contextmanager
    def lift(self) -> Iterator[None]:
        """Lifts the limit; it is restored when the last thread inside leaves."""
        with self._lock:
            if not self._lifted:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._lifted += 1
        try:
            yield
        finally:
            with self._lock:
                self._lifted -= 1
                if not self._lifted:
                    Image.MAX_IMAGE_PIXELS = self._limit


without_pixel_limit = PixelLimit().lift


def open_picture(path: str | Path, limits: ImageLimits = SHAPELESS_LIMITS) -> Image.Image:
    """Reads a file as an upright RGB image.

    Raises:
        ValueError: there is no such file, or it can't be read as an image within the limits.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        with path.open("rb") as file:
            return decode_picture(str(path), file, limits)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None


def decode_picture(name: str, file: BinaryIO, limits: ImageLimits = SHAPELESS_LIMITS) -> Image.Image:
    """Decodes an open file as an upright RGB image; `name` is for errors.

    Raises:
        ValueError: it can't be read as an image within the limits.
    """
    try:
        with without_pixel_limit():
            return decode_image(limits.read(file), limits, formats=MORE_FORMATS)
    except ImageError as error:
        raise ValueError(f"{name}: {error}") from None


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
