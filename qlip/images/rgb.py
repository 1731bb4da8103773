"""Converts an image of any Pillow mode to upright RGB, with Pillow and numpy only."""

from __future__ import annotations

import re
import struct

import numpy as np
from PIL import Image
from PIL.Image import Transpose

ORIENTATION = 0x0112  # EXIF's tag
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""EXIF orientation -> the turn that makes an image upright; others are upright, or unknown."""
SPREAD = {"L;2": 85, "L;4": 17}
"""Pillow's raw mode of 2- and 4-bit grey -> the factor it multiplies levels by."""
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_MAX_XMP = 2**20  # bytes that are searched


def to_rgb(image: Image.Image, upright: bool = True) -> Image.Image:
    """Converts an image to upright RGB; returns the image itself if it is RGB without metadata.

    Applies the EXIF orientation and puts transparency on white. Grey of more than 8 bits is scaled down: integers above
    255 count as 16-bit, floats up to 1 as fractions of white; NaN is black.

    Args:
        image: The image, of any mode.
        upright: False leaves it turned as it is stored; later readers don't turn it either.

    Raises:
        TypeError: it is not a Pillow image.
        ValueError: it has no pixels.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"the image is a {type(image).__name__}; it must be a Pillow image")
    _scale_clear_level(image)
    image.load()
    if 0 in image.size:
        raise ValueError(f"the image has {image.width} x {image.height} pixels; it needs at least one")
    if image.mode == "RGB" and not image.info:
        return image  # copying a photograph takes as long as decoding it
    turn = TURNS.get(read_orientation(image)) if upright else None
    if image.mode == "F" or image.mode.startswith("I"):
        image = _grey_to_8_bits(image)
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.info = {}  # the next reader would apply the orientation again
    return image if turn is None else image.transpose(turn)


def _grey_to_8_bits(image: Image.Image) -> Image.Image:
    """Scales grey of integers or floats to "L"; with a transparent level, to "LA"."""
    grey = np.array(image, dtype=np.float32)  # scaled in place: a large image has room for one copy
    top = np.nanmax(grey, initial=0.0)
    if image.mode == "F" and top <= 1:  # fractions of white
        grey *= np.float32(255)
    elif top > 255:  # 16 bits
        grey *= np.float32(1 / 257)
    levels = np.nan_to_num(np.clip(grey, 0, 255, out=grey), copy=False).round(out=grey).astype(np.uint8)
    scaled = Image.fromarray(levels)
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # one level of grey
        opaque = np.where(np.asarray(image) == clear, 0, 255).astype(np.uint8)
        scaled.putalpha(Image.fromarray(opaque))
    return scaled


def _scale_clear_level(image: Image.Image) -> None:
    """Scales the transparent level of a PNG that is still to be decoded as Pillow will scale its pixels.

    Pillow leaves it as in the file where it spreads grey of 2 and 4 bits over 0-255, and drops half of 16-bit RGB.
    """
    clear, tile = image.info.get("transparency"), getattr(image, "tile", None)
    if image.format != "PNG" or clear is None or not tile:
        return
    raw = tile[0][3]  # Pillow's name of how pixels are stored
    if isinstance(clear, int) and raw in SPREAD:
        image.info["transparency"] = clear * SPREAD[raw]
    elif isinstance(clear, tuple) and raw == "RGB;16B":
        image.info["transparency"] = tuple(level >> 8 for level in clear)


def read_orientation(image: Image.Image) -> int:
    """Reads the EXIF orientation of a loaded image; 1 (upright) if it has none.

    Looks for this one tag where Pillow's `getexif` does, XMP last. `getexif` itself expands all tags, which may point
    at the same bytes again and again, so that a file of 5 MB takes gigabytes. Pillow has turned TIFF images upright on
    loading.
    """
    info = image.info
    found = find_orientation(info.get("exif") or _raw_profile(info.get("Raw profile type exif")))
    if found is None:
        found = _orientation_in_xmp(info.get("XML:com.adobe.xmp") or info.get("xmp"))
    return 1 if found is None else found


def _raw_profile(text: object) -> bytes:
    """Decodes EXIF that ImageMagick writes into PNG text: three lines of a header, then hexadecimal digits."""
    if not isinstance(text, str):
        return b""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return b""


def find_orientation(exif: object) -> int | None:
    """Finds the orientation in an EXIF block, a TIFF header and directory; None if it has none.

    Args:
        exif: The block's bytes, with or without the "Exif" marker of a JPEG file.
    """
    if not isinstance(exif, bytes):
        return None
    data = memoryview(exif)[6 if exif.startswith(b"Exif\0\0") else 0 :]
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None or len(data) < 8:
        return None
    start = struct.unpack_from(order + "L", data, 4)[0]
    if start + 2 > len(data):
        return None
    count = struct.unpack_from(order + "H", data, start)[0]
    for offset in range(start + 2, min(start + 2 + 12 * count, len(data) - 11), 12):
        tag, kind, values = struct.unpack_from(order + "HHL", data, offset)
        if tag == ORIENTATION and values == 1 and kind in (3, 4):  # SHORT as EXIF wants it, or LONG
            return struct.unpack_from(order + ("H" if kind == 3 else "L"), data, offset + 8)[0]
    return None


def _orientation_in_xmp(xmp: object) -> int | None:
    data = xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp
    match = _XMP_ORIENTATION.search(data[:_MAX_XMP]) if isinstance(data, bytes) else None
    return int(match[1]) if match else None
