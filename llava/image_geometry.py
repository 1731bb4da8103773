"""Resizes, pads, tiles and encodes images for models and chats. Pillow only."""

from __future__ import annotations

import ast
import base64
import math
import re
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from llava.constants import CHAT_LONG, CHAT_SHORT

WidthHeight = tuple[int, int]
"""(width, height) in pixels, as in Pillow and LLaVA's configurations."""

_CHAT_PADDING = (122, 116, 104)  # CLIP's mean colour
_BAND_PIXELS = 4_000_000
_ANYRES = re.compile(r"anyres(?:_max_([1-9][0-9]*))?")
_TILE_COUNTS = re.compile(r"\(([1-9][0-9]?)x([1-9][0-9]?)\)")


def is_anyres(aspect_ratio: Any) -> bool:
    """Whether an `image_aspect_ratio` cuts images into tiles: "anyres", or LLaVA-NeXT's "anyres_max_N"."""
    return isinstance(aspect_ratio, str) and _ANYRES.fullmatch(aspect_ratio) is not None


def most_tiles(aspect_ratio: str) -> int | None:
    """Finds N of "anyres_max_N": the tiles' features are shrunk to about N tiles; None for "anyres"."""
    found = _ANYRES.fullmatch(aspect_ratio)
    return int(found[1]) if found is not None and found[1] is not None else None


def read_pinpoints(pinpoints: Any, tile: int = 1) -> list[WidthHeight]:
    """Reads `image_grid_pinpoints`: the resolutions that images are tiled at.

    Args:
        pinpoints: A list of (width, height) in pixels, its text, or LLaVA-NeXT's "(1x1),...,(6x6)": numbers of tiles,
            columns by rows, all from the first pair to the last.
        tile: Side of a tile in pixels.

    Raises:
        ValueError: it is none of these, or a width or height is not a multiple of `tile`.
    """
    allowed = "allowed are a list of (width, height) in pixels, its text, and '(1x1),...,(6x6)'"
    read = pinpoints
    if isinstance(pinpoints, str) and (counts := _TILE_COUNTS.findall(pinpoints)):
        (first_cols, first_rows), (cols, rows) = (tuple(map(int, pair)) for pair in (counts[0], counts[-1]))
        read = [(i * tile, j * tile) for i in range(first_cols, cols + 1) for j in range(first_rows, rows + 1)]
    elif isinstance(pinpoints, str):
        try:
            read = ast.literal_eval(pinpoints)
        except (ValueError, SyntaxError):
            read = None
    if not isinstance(read, (list, tuple)) or not read:
        raise ValueError(f"image_grid_pinpoints is {pinpoints!r}; {allowed}")
    for pair in read:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(type(x) is int and x > 0 for x in pair):
            raise ValueError(f"image_grid_pinpoints holds {pair!r}; {allowed}")
        if any(x % tile for x in pair):
            raise ValueError(f"image_grid_pinpoints holds {pair!r}; allowed are multiples of a tile's {tile} pixels")
    return [(width, height) for width, height in read]


def find_padding(frame: WidthHeight, original: WidthHeight) -> WidthHeight:
    """Computes the padding of an image of size `original` that was fitted into `frame`: (each side, above and below).

    In the frame's unit, which may be cells; one of the two is 0. Exact, as in transformers' LlavaNext. LLaVA's product
    of floats falls below a whole number at one size in 6000, such as 984 x 205 pixels, where it cuts one row less off.
    """
    (width, height), (original_width, original_height) = frame, original
    if original_width * height > original_height * width:  # wider than the frame
        return 0, (height - original_height * width // original_width) // 2
    return (width - original_width * height // original_height) // 2, 0


def select_best_resolution(original_size: WidthHeight, possible_resolutions: Sequence[WidthHeight]) -> WidthHeight:
    """Chooses the (width, height) that keeps most of an image's pixels and, of equal ones, wastes least."""

    def kept_and_wasted(resolution: WidthHeight) -> tuple[int, int]:
        (width, height), (original_width, original_height) = resolution, original_size
        scale = min(width / original_width, height / original_height)
        kept = min(int(original_width * scale) * int(original_height * scale), original_width * original_height)
        return kept, kept - width * height

    width, height = max(possible_resolutions, key=kept_and_wasted)
    return width, height


def fit_into(original: WidthHeight, frame: WidthHeight) -> tuple[int, int, int, int]:
    """Finds where an image of size `original` lies that is fitted into `frame`, centred: (left, top, width, height)."""
    (width, height), (original_width, original_height) = frame, original
    scale = min(width / original_width, height / original_height)
    fitted = min(math.ceil(original_width * scale), width), min(math.ceil(original_height * scale), height)
    return (width - fitted[0]) // 2, (height - fitted[1]) // 2, *fitted


def resize_and_pad_image(image: Image.Image, target_resolution: WidthHeight) -> Image.Image:
    """Fits an image into `target_resolution` (width, height), keeping its aspect ratio, centred on black."""
    left, top, width, height = fit_into(image.size, target_resolution)
    padded = Image.new("RGB", target_resolution)
    padded.paste(image.resize((width, height)), (left, top))
    return padded


def divide_to_patches(image: Image.Image, patch_size: int) -> list[Image.Image]:
    """Cuts an image into squares of `patch_size` pixels, in raster order."""
    return [
        image.crop((left, top, left + patch_size, top + patch_size))
        for top in range(0, image.height, patch_size)
        for left in range(0, image.width, patch_size)
    ]


def expand2square(pil_img: Image.Image, background_color: tuple[int, int, int]) -> Image.Image:
    """Pads an image to a square of its longer side, centred on `background_color`."""
    width, height = pil_img.size
    if width == height:
        return pil_img
    side = max(width, height)
    square = Image.new(pil_img.mode, (side, side), background_color)
    square.paste(pil_img, ((side - width) // 2, (side - height) // 2))
    return square


def resize_padded(image: Image.Image, background: tuple[int, int, int], side: int, resample: int) -> Image.Image:
    """Computes `expand2square(image, background).resize((side, side), resample)` without the square.

    The square of a long strip takes gigabytes. Pillow resizes rows first, rounds, and then resizes columns, so
    padding above and below can be added between the two, and padding on the sides to some rows at a time. The result
    is equal to the pixel; for an image more than eight times as tall as wide, to one level of 255.
    """
    width, height = image.size
    rows = Image.new("RGB", (side, max(width, height)), background)
    if width >= height:
        rows.paste(image.resize((side, height), resample), (0, (width - height) // 2))
        return rows.resize((side, side), resample)
    first, last, start, stop, box = 0, side, 0, height, (0.0, float(height))
    left, scale = (height - width) // 2, height / side
    if height > 8 * width:  # most of each row is padding: only what the image reaches is computed
        reach = 3 * max(scale, 1.0) + 2  # pixels; the widest filter, Lanczos, has a radius of three
        first, last = max(0, int((left - reach) / scale)), min(side, int((left + width + reach) / scale) + 1)
        start, stop = max(0, int(first * scale - reach)), min(height, int(last * scale + reach) + 1)
        box = first * scale - start, min(last * scale, height) - start
    step = max(1, _BAND_PIXELS // (stop - start))
    for top in range(0, height, step):
        bottom = min(top + step, height)
        band = Image.new("RGB", (stop - start, bottom - top), background)
        band.paste(image.crop((0, top, width, bottom)), (left - start, 0))
        resized = band.resize((last - first, bottom - top), resample, (box[0], 0, box[1], bottom - top))
        rows.paste(resized, (first, top))
    return rows.resize((side, side), resample)


def encode_image_to_base64(image: Image.Image, image_format: str) -> str:
    """Encodes an image as the base64 text of a file of `image_format` ("PNG", "JPEG")."""
    buffer = BytesIO()
    image.save(buffer, format=image_format)
    return base64.b64encode(buffer.getvalue()).decode()


def fit_for_chat(image: Image.Image, mode: str, max_len: int = CHAT_LONG, min_len: int = CHAT_SHORT) -> Image.Image:
    """Resizes an image for a chat request.

    Args:
        image: The image.
        mode: "Pad" to a square, "Resize" to 336 x 336, "Default" or "Crop" to keep its aspect ratio.
        max_len: Images with a longer side above this, in pixels, are shrunk to it.
        min_len: Largest shorter side of an image that is shrunk.

    Raises:
        ValueError: for any other mode.
    """
    if mode == "Pad":
        image = expand2square(image.convert("RGB"), _CHAT_PADDING)
    elif mode == "Resize":
        image = image.resize((336, 336))
    elif mode not in ("Default", "Crop"):
        raise ValueError(f"mode must be 'Pad', 'Resize', 'Default' or 'Crop', got {mode!r}")
    long, short = max(image.size), min(image.size)
    if long <= max_len:
        return image
    new_short = max(int(min(max_len * short / long, min_len, short)), 1)
    new_long = int(new_short * long / short)
    return image.resize((new_long, new_short) if image.width >= image.height else (new_short, new_long))
