"""Pictures as LLaVA's protocol carries them: the base64 text of image files, within a request's limits."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from llava.images import DEFAULT_LIMITS
from llava.serve.web.clip_sizes import PATCH_SIZE
from qlip.config import QLIPConfig

MAX_ENCODED_PIXELS = QLIPConfig.max_cells * PATCH_SIZE**2
"""Most pixels of a picture that is sent; a tower would resize a larger one itself."""
MAX_ENCODED_BYTES = 45 * 2**20
"""Most bytes of all pictures' files: in base64 they leave 4 of the 64 MiB of a request to its text."""


def encode_pictures(pictures: Sequence[Image.Image]) -> list[str]:
    """Encodes pictures without loss (PNG), or as JPEG where that would exceed what a request may hold."""
    small = [_shrink(picture) for picture in pictures]
    files = [_save(picture, "PNG") for picture in small]
    if sum(map(len, files)) > MAX_ENCODED_BYTES or any(len(file) > DEFAULT_LIMITS.max_bytes for file in files):
        files = [_save(picture, "JPEG", quality=95, subsampling=0) for picture in small]
    return [base64.b64encode(file).decode() for file in files]


def _shrink(picture: Image.Image) -> Image.Image:
    """Resizes a picture of more than `MAX_ENCODED_PIXELS` to that."""
    scale = math.sqrt(MAX_ENCODED_PIXELS / (picture.width * picture.height))
    if scale >= 1:
        return picture
    size = max(1, int(picture.width * scale)), max(1, int(picture.height * scale))
    return picture.resize(size, Image.Resampling.BICUBIC)


def _save(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    picture.convert("RGB").save(buffer, kind, **options)
    return buffer.getvalue()
