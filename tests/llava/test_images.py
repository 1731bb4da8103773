"""Pictures open upright and RGB from every source, and whatever is broken, too large or not allowed is refused."""

from __future__ import annotations

import base64
import os
import re
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from llava.images import ImageError, ImageLimits, load_image, load_image_from_base64

EXIF_ORIENTATION = 0x0112


def encode(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG file that declares a size and holds next to no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.fixture
def picture() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    return Image.fromarray(values)


# Sources


def test_whatever_holds_a_picture_gives_the_same_picture(picture: Image.Image, tmp_path: Path) -> None:
    data = encode(picture)
    text = base64.b64encode(data).decode()
    (tmp_path / "picture.png").write_bytes(data)
    loaded = [
        load_image(tmp_path / "picture.png"),
        load_image(str(tmp_path / "picture.png")),
        load_image(data),
        load_image(bytearray(data)),
        load_image(memoryview(data)),
        load_image(BytesIO(data)),
        load_image(picture),
        load_image(picture.convert("RGBA")),
        load_image(f"data:image/png;base64,{text}"),
        load_image(f"data:image/png;base64,{quote(text, safe='')}"),
        load_image_from_base64(text),
        load_image_from_base64(text.encode()),
    ]
    assert [image.mode for image in loaded] == ["RGB"] * 12
    assert [image.tobytes() for image in loaded] == [picture.tobytes()] * 12


def test_a_picture_that_is_open_is_turned_upright_and_within_the_limits(picture: Image.Image) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    with Image.open(BytesIO(encode(picture, exif=exif))) as opened:
        assert load_image(opened).size == (picture.height, picture.width)
    with pytest.raises(ImageError, match="at most 100"):
        load_image(picture, ImageLimits(max_pixels=100))
    with pytest.raises(ImageError, match="larger than 10 bytes"):
        load_image(BytesIO(encode(picture)), ImageLimits(max_bytes=10))


@pytest.mark.parametrize("source", [None, 3, np.zeros((4, 4, 3), np.uint8), ["a.png"]])
def test_what_is_no_source_is_refused_with_what_is_one(source: Any) -> None:
    with pytest.raises(TypeError, match=f"the image is a {type(source).__name__}; it must be a path, a URL, the bytes"):
        load_image(source)


def test_a_picture_may_come_through_a_pipe(picture: Image.Image) -> None:
    data = encode(picture)
    for limits in (ImageLimits(), ImageLimits(max_bytes=len(data) - 1)):
        reading, writing = os.pipe()
        with os.fdopen(writing, "wb") as end:
            end.write(data)
        with os.fdopen(reading, "rb") as pipe:
            if limits.max_bytes >= len(data):
                assert load_image(pipe, limits).tobytes() == picture.tobytes()
            else:
                with pytest.raises(ImageError, match="larger than"):
                    load_image(pipe, limits)


def test_the_rest_of_a_file_that_was_begun_is_read(picture: Image.Image) -> None:
    begun = BytesIO(b"head" + encode(picture))
    begun.seek(4)
    assert load_image(begun).tobytes() == picture.tobytes()


def test_a_file_that_is_open_as_text_is_refused() -> None:
    with pytest.raises(TypeError, match="open it for bytes"):
        load_image(StringIO("P1 1 1 0"))


def test_base64_text_in_place_of_a_name_is_refused_in_one_short_line(picture: Image.Image) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for image in (picture, noise):  # the longer one is too long for a name, too
        with pytest.raises(ImageError, match="data:image/png;base64, before it") as refused:
            load_image(base64.b64encode(encode(image)).decode())
        assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere.png", "no such image file: nowhere.png"),
        (Path("/"), "/ is a folder, not an image file"),
        ("file:///etc/passwd", "file: URLs are not allowed"),
        ("FILE:/etc/passwd", "file: URLs are not allowed"),
        ("ftp://example.org/a.png", "ftp: URLs are not allowed"),
        ("data:image/png,abc", "must read data:image"),
        ("data:image/png;base64,a*b", "base64 text is broken"),
        ("http://", "needs a host"),
        (" http://\n", "needs a host"),
        ("http://user:secret@example.org/", "may not hold a password"),
        ("http://example.org:port/", "cannot download the image"),
    ],
)
def test_sources_that_cannot_be_read_are_refused_in_clear_words(source: str | Path, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        load_image(source)


def test_a_server_can_refuse_paths_and_urls(tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "picture.png")
    with pytest.raises(ImageError, match="local image files are not allowed"):
        load_image(str(tmp_path / "picture.png"), allow_paths=False)
    with pytest.raises(ImageError, match="image URLs are not allowed"):
        load_image("http://example.org/a.png", allow_urls=False)


@pytest.mark.parametrize("source", ["file:///etc/passwd", "ftp://example.org/a.png", "no URL"])
@pytest.mark.parametrize(
    ("allowed", "named"),
    [
        ({}, {"http:", "https:", "data:"}),
        ({"allow_urls": False}, {"data:"}),
        ({"allowed_hosts": {"example.org"}}, {"http:", "https:", "data:", "--allowed-media-domains"}),
        ({"allow_urls": False, "allowed_hosts": frozenset()}, {"data:"}),  # as a server without flags
    ],
)
def test_the_error_of_an_impossible_source_names_what_is_allowed(source: str, allowed: Any, named: set[str]) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(source, allow_paths=False, **allowed)
    _, _, words = str(caught.value).partition("; use ")
    known = ("http:", "https:", "data:", "--allowed-media-domains", "path")
    assert {name for name in known if re.search(rf"(?<![a-z]){name}", words)} == named


def test_where_paths_are_allowed_the_error_of_another_url_names_them() -> None:
    with pytest.raises(ImageError, match="use http:, https: or data:, or the file's path"):
        load_image("ftp://example.com/a.png")


# Modes


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("RGB", "WEBP"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG")],
)
def test_opaque_modes_equal_pillows_own_conversion(picture: Image.Image, mode: str, file_format: str) -> None:
    data = encode(picture.convert(mode), file_format)
    loaded = load_image(data)
    assert loaded.mode == "RGB"
    assert loaded.tobytes() == Image.open(BytesIO(data)).convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(mode: str) -> None:
    black = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    black.paste((0, 0, 0, 0), (0, 0, 4, 8))
    loaded = load_image(encode(black.convert(mode)))
    assert loaded.getpixel((0, 0)) == (255, 255, 255)
    assert loaded.getpixel((7, 7)) == (0, 0, 0)


def test_sixteen_bits_scale_to_eight() -> None:
    values = np.tile(np.array([0, 257, 32896, 65535], dtype=np.uint16), (4, 1))
    loaded = load_image(encode(Image.fromarray(values)))
    assert [loaded.getpixel((column, 0)) for column in range(4)] == [(v, v, v) for v in (0, 1, 128, 255)]


def test_exif_rotation_is_applied(picture: Image.Image) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # the camera was turned: rows are columns
    loaded = load_image(encode(picture, exif=exif))
    assert loaded.tobytes() == picture.rotate(-90, expand=True).tobytes()


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(file_format: str) -> None:
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    loaded = load_image(encode(red, file_format, save_all=True, append_images=[blue]))
    assert np.allclose(loaded.getpixel((4, 4)), (255, 0, 0), atol=4)


# Refusals


@pytest.mark.parametrize(
    ("size", "limits", "words"),
    [
        ((1, 1), ImageLimits(), "1x1 pixels; each side needs at least 4"),
        ((8, 3), ImageLimits(), "8x3 pixels; each side needs at least 4"),
        ((20_000, 10), ImageLimits(), "20000x10 pixels; each side may have at most 16384"),
        ((1000, 10), ImageLimits(), "1000x10 pixels; one side may be at most 64 times the other"),
        ((100, 100), ImageLimits(max_pixels=9_999), "100x100 pixels; at most 9,999 pixels"),
    ],
)
def test_sizes_beyond_the_limits_are_refused(size: tuple[int, int], limits: ImageLimits, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        load_image(encode(Image.new("L", size)), limits)


@pytest.mark.parametrize("side", [9_000, 16_000])
def test_a_declared_size_is_judged_before_pixels_are_decoded(side: int) -> None:
    with pytest.raises(ImageError, match="pixels"):
        load_image(png_header(side, side))


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: f"data:;base64,{base64.b64encode(data).decode()}"])
def test_large_files_are_refused(picture: Image.Image, wrap: Callable[[bytes], str | bytes]) -> None:
    with pytest.raises(ImageError, match="larger than 100 bytes"):
        load_image(wrap(encode(picture)), ImageLimits(max_bytes=100))


def test_of_a_large_file_no_more_than_the_limit_is_read(tmp_path: Path, picture: Image.Image) -> None:
    path = tmp_path / "picture.png"
    picture.save(path)
    with pytest.raises(ImageError, match="larger than 100 bytes"):
        load_image(path, ImageLimits(max_bytes=100))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture at all",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 50,
        encode(Image.effect_noise((64, 64), 50))[:-500],
        encode(Image.effect_noise((64, 64), 50), "JPEG")[:300],
        encode(Image.effect_noise((64, 64), 50).convert("RGB"), "WEBP")[:200],
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    ],
    ids=["empty", "text", "png-signature", "cut-png", "cut-jpeg", "cut-webp", "postscript", "heic"],
)
def test_broken_and_other_files_are_refused_without_pillows_message(data: bytes) -> None:
    with pytest.raises(ImageError, match="not a readable image") as caught:
        load_image(data)
    assert "0x" not in str(caught.value)
    assert ("HEIC" in str(caught.value)) == (b"heic" in data)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("name", ["max_bytes", "min_side", "timeout"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        ImageLimits(**{name: 0})


def test_a_name_that_no_file_system_takes_is_a_picture_that_cannot_be_read() -> None:
    with pytest.raises(ImageError, match="cannot read x{20}.*: File name too long"):
        load_image("x" * 300)


@pytest.mark.parametrize("unit", ["%", "%41", "ab "])
def test_text_that_is_long_and_odd_is_read_in_the_memory_of_some_copies(unit: str) -> None:
    text = unit * (6_000_000 // len(unit))
    tracemalloc.start()
    try:
        with suppress(ImageError):
            load_image_from_base64(text)
        assert tracemalloc.get_traced_memory()[1] < 6 * len(text)
    finally:
        tracemalloc.stop()
