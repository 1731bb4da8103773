"""Malformed requests, and hostile or odd image files. Nothing here knows a server.

`malformed(i)` must be refused with a 4xx. `PICTURES` says of each image whether it must be answered or refused.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

LLAVA, OPENAI = "/worker_generate_stream", "/v1/chat/completions"

# Values of a wrong type for a field that takes a number, a text or a list.
NOT_A_NUMBER: tuple[Any, ...] = ("warm", [], {}, "1e999", [0.5], {"value": 1})
NOT_A_TEXT: tuple[Any, ...] = (3, {}, [None], True, [[]], {"text": "Hi"})
NOT_A_LIST: tuple[Any, ...] = (3, {}, "", [3], [[]], {"0": "x"})
BAD_FIELDS: dict[str, dict[str, tuple[Any, ...]]] = {
    LLAVA: {
        "prompt": (None, *NOT_A_TEXT, "two <image> but <image> one picture"),
        "temperature": (*NOT_A_NUMBER, -1, -0.001, 1e400),
        "top_p": (*NOT_A_NUMBER, -1, 2),
        "max_new_tokens": (*NOT_A_NUMBER, 0, -5, 2.5),
        "images": (*NOT_A_LIST, [], ["%%%"], ["AAA"], ["data:text/html,x"]),
        "seed": (*NOT_A_NUMBER, 2**70, 0.5),
        "qlip": (3, "on", [], {"alpha": -1}, {"max_tokens": 0}, {"image_size": 10**9}, {"nonsense": 1}),
    },
    OPENAI: {
        "model": (None, 3, [], "", "no-such-model", "../../etc/passwd"),
        "messages": (None, *NOT_A_LIST, [], [{}], [{"role": "wizard", "content": "Hi"}], [{"role": "user"}]),
        "temperature": (*NOT_A_NUMBER, -1, 1e400),
        "top_p": (*NOT_A_NUMBER, -1, 2),
        "max_tokens": (*NOT_A_NUMBER, 0, -5, 2.5, 10**9),
        "n": (*NOT_A_NUMBER, 0, 2),
        "stop": (3, {}, [3], ["a", "b", "c", "d", "e"]),
        "stream": ("maybe", [], {}),
        "qlip": (3, "on", [], {"alpha": -1}, {"max_tokens": 0}, {"image_size": 10**9}),
    },
}
BAD_BODIES = (
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"\xff\xfe\x00",
    b"[" * 50_000,
    b'{"a": NaN}',
    b"--boundary\r\n",
    b"\x00" * 1000,
)


@dataclass(frozen=True)
class Bad:
    """One malformed request."""

    path: str
    body: bytes
    what: str
    """What is wrong with it, for the report."""


def malformed(number: int, model: str, picture: str) -> Bad:
    """Makes malformed request number `number`: a valid one with one field wrong, or no JSON object at all.

    Args:
        number: selects the fault; all fields and values occur.
        model: the name that the servers know.
        picture: Base64 text of a good image.
    """
    path = (LLAVA, OPENAI)[number % 2]
    if number % 10 >= 8:
        body = BAD_BODIES[number // 10 % len(BAD_BODIES)]
        return Bad(path, body, repr(body[:12]))
    fields = list(BAD_FIELDS[path])
    field = fields[number // 2 % len(fields)]
    values = BAD_FIELDS[path][field]
    value = values[number // (2 * len(fields)) % len(values)]
    request = {**good(path, model, picture, "What is in the picture?"), field: value}
    return Bad(path, json.dumps(request).encode(), f"{field}={value!r:.40}")


def good(path: str, model: str, picture: str, question: str, prompt: str | None = None) -> dict[str, Any]:
    """Makes a valid request.

    Args:
        path: selects the protocol.
        model: the model's name.
        picture: Base64 text of an image file.
        question: about the image.
        prompt: the question in the model's prompt format, for LLaVA's protocol.
    """
    if path == LLAVA:
        text = prompt or f"USER: <image>\n{question} ASSISTANT:"
        return {"model": model, "prompt": text, "images": [picture], "temperature": 0, "max_new_tokens": 32}
    content = [
        {"type": "text", "text": question},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
    ]
    return {"model": model, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 32}


# Pictures


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Encodes an image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Draws random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Encodes a chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width: int, height: int) -> bytes:
    """Makes a PNG of a few bytes whose header claims this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1_000_000)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def deep_grey() -> bytes:
    """Makes a PNG of 16 bits per pixel."""
    return saved(Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16))


def rotated() -> bytes:
    """Makes a JPEG whose EXIF data asks for a rotation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(noise(64, 48), "JPEG", exif=exif)


def animated() -> bytes:
    """Makes a GIF of three frames."""
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


@cache
def flat_jpeg(side: int) -> bytes:
    """Makes a progressive JPEG of one grey; once, since large ones take seconds."""
    return saved(Image.new("L", (side, side), 128), "JPEG", progressive=True)


def jpeg_of_scans(side: int = 8000, scans: int = 45_000) -> bytes:
    """Makes a progressive JPEG that repeats an empty scan: ten bytes each, and a pass over all pixels."""
    data = flat_jpeg(side)
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 0, 0x10)
    return data.removesuffix(b"\xff\xd9") + scans * scan + b"\xff\xd9"


def slow_jpeg() -> bytes:
    """Makes a JPEG within all limits except the time limit: it decodes in five seconds or more."""
    return jpeg_of_scans(scans=490)


def directory(entries: list[bytes], tags: int, size: int, place: int) -> bytes:
    """Encodes a TIFF directory: the given entries, and tags that all point at the same bytes."""
    entries = entries + [struct.pack("<HHLL", 50_000 + i, 7, size, place) for i in range(tags)]
    return struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def png_with_tags(tags: int = 200, size: int = 5 * 2**20) -> bytes:
    """Makes a PNG whose EXIF tags expand to a gigabyte; none of them is the orientation."""
    place = 8 + len(directory([], tags, size, 0))
    exif = b"II*\0" + struct.pack("<L", 8) + directory([], tags, size, place) + bytes(size)
    png = saved(Image.new("RGB", (64, 64), "teal"))
    return png[:33] + png_chunk(b"eXIf", exif) + png[33:]  # after the header


def tiff_with_tags(tags: int = 600, size: int = 14 * 2**20) -> bytes:
    """Makes a TIFF whose tags expand to eight gigabytes."""
    grey = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 64, 279: 4096}
    entries = [struct.pack("<HHLL", tag, 4, 1, value) for tag, value in grey.items()]
    start = 8 + 64 * 64
    place = start + len(directory(entries, tags, size, 0))
    header = b"II*\0" + struct.pack("<L", start)
    return header + bytes(64 * 64) + directory(entries, tags, size, place) + bytes(size)


def png_of_chunks(count: int) -> bytes:
    """Makes a PNG with this number of empty chunks, which Pillow reads one by one in Python."""
    png = saved(Image.new("L", (64, 64)))
    return png[:33] + count * png_chunk(b"abCd", b"") + png[33:]


def gif_with_comment(size: int, before: bytes = b"") -> bytes:
    """Makes a GIF with a comment of about `size` bytes, which Pillow joins in time that grows with its square."""
    gif = saved(Image.new("L", (64, 64)), "GIF")
    start = gif.index(b",", 13 + 3 * 2 ** ((gif[10] & 7) + 1))
    comment = b"!\xfe" + size // 256 * (b"\xff" + 255 * b"a") + b"\0"
    return gif[:start] + before + comment + gif[start:]


def with_wrong_checksum() -> bytes:
    """Makes a PNG with a flipped bit in its pixels."""
    data = bytearray(saved(noise(64, 64)))
    data[data.index(b"IDAT") + 2000] ^= 1
    return bytes(data)


PICTURES: dict[str, tuple[Callable[[], bytes], bool]] = {
    "1 x 1": (lambda: saved(Image.new("RGB", (1, 1))), False),
    "20000 x 10": (lambda: saved(Image.new("RGB", (20_000, 10))), False),
    "bomb": (lambda: png_that_claims(30_000, 30_000), False),
    "huge sides": (lambda: png_that_claims(2**31 - 1, 2**31 - 1), False),
    "truncated PNG": (lambda: saved(noise(64, 64))[:4000], False),
    "truncated JPEG": (lambda: saved(noise(64, 64), "JPEG")[:700], False),
    "empty": (lambda: b"", False),
    "text": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", False),
    "pickle": (lambda: b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix", False),
    "PostScript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", False),
    "wrong checksum": (with_wrong_checksum, False),
    "45000 scans": (jpeg_of_scans, False),
    "tags in TIFF": (tiff_with_tags, False),
    "comment in GIF": (lambda: gif_with_comment(15 * 2**20), False),
    "chunks in PNG": (lambda: png_of_chunks(10**6), False),
    "tags in EXIF": (png_with_tags, True),
    "wide strip": (lambda: saved(Image.new("RGB", (16_384, 256))), True),
    "tall strip": (lambda: saved(Image.new("RGB", (256, 16_384))), True),
    "broken header": (lambda: b"\x89PNG\r\n\x1a\n" + b"\0" * 64, False),
    "16 bits": (deep_grey, True),
    "CMYK": (lambda: saved(noise(64, 64, "CMYK"), "JPEG"), True),
    "rotated": (rotated, True),
    "animated": (animated, True),
    "palette": (lambda: saved(noise(64, 64, "P")), True),
    "transparent": (lambda: saved(noise(64, 64, "RGBA")), True),
    "one bit": (lambda: saved(noise(64, 64, "1")), True),
    "WebP": (lambda: saved(noise(64, 64), "WEBP"), True),
    "TIFF": (lambda: saved(noise(64, 64), "TIFF"), True),
}
"""Name -> how it is made, and whether it must be answered (the others must be refused with 4xx)."""


def encoded(data: bytes) -> str:
    """Encodes bytes as Base64 text."""
    return base64.b64encode(data).decode()
