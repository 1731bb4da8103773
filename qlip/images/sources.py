"""Opens what transformers' processors take for an image: a path, a URL or base64 text.

transformers' own loader turns 16-bit grey white and drops transparency: a file would be another picture than the same
file opened by Pillow or by `llava`.
"""

from __future__ import annotations

import base64
import binascii
import os
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

from PIL import Image

from qlip.images.limits import SHAPELESS_LIMITS, ImageError
from qlip.images.pictures import decode_picture, open_picture

TIMEOUT = 30.0
"""Seconds that a server may take to answer, and between parts of its answer."""


def open_sources(images: Any) -> Any:
    """Opens the paths, URLs and base64 texts among images, in lists of any depth; returns other images unchanged.

    Raises:
        ValueError: a text is none of these, or its image can't be read.
        OSError: a URL can't be downloaded.
    """
    if isinstance(images, list | tuple):
        return [open_sources(image) for image in images]
    return _open_source(images) if isinstance(images, str | Path) else images


def _open_source(source: str | Path) -> Image.Image:
    text = str(source)
    if text.startswith(("http://", "https://")):
        return decode_picture(text, BytesIO(_download(text)))
    if isinstance(source, Path) or os.path.isfile(text):
        return open_picture(source)
    start, _, encoded = text.rpartition(",")
    if start and not start.startswith("data:image/"):
        encoded = text
    try:
        data = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise ValueError(f"{_shorten(text)!r} is no image file, http(s) URL or base64 text of an image")
    return decode_picture(_shorten(text), BytesIO(data))


def _download(url: str) -> bytes:
    try:
        request = Request(quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers={"User-Agent": "qlip"})
        with urlopen(request, timeout=TIMEOUT) as answer:
            return SHAPELESS_LIMITS.read(answer)
    except (HTTPException, ImageError, UnicodeError) as error:
        raise OSError(f"cannot download {_shorten(url)} ({type(error).__name__})") from None


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]}..."
