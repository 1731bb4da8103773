"""An image's size from its file's header is that of the loaded image, upright as that is."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from llava.images import ImageError, ImageLimits, load_image, read_size

ORIENTATION = 0x0112
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8))
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'


def exif(orientation: int) -> Image.Exif:
    values = Image.Exif()
    values[ORIENTATION] = orientation
    return values


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def insert_chunk(file: Path, chunk: bytes, after_pixels: bool) -> None:
    data = file.read_bytes()
    place = data.index(b"IEND" if after_pixels else b"IDAT") - 4
    file.write_bytes(data[:place] + chunk + data[place:])


def assert_same(file: Path, wanted: tuple[int, int]) -> None:
    assert read_size(file) == load_image(file).size == wanted


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_turns_the_size_as_it_turns_the_image(tmp_path: Path, file_format: str, orientation: int) -> None:
    PICTURE.save(tmp_path / "picture", file_format, exif=exif(orientation))
    assert_same(tmp_path / "picture", (20, 12) if orientation < 5 else (12, 20))


@pytest.mark.parametrize("file_format", ["GIF", "BMP", "PPM"])
def test_formats_without_orientation(tmp_path: Path, file_format: str) -> None:
    PICTURE.save(tmp_path / "picture", file_format)
    assert_same(tmp_path / "picture", (20, 12))


@pytest.mark.parametrize("after_pixels", [False, True])
@pytest.mark.parametrize("kind", ["eXIf", "iTXt", "zTXt"])
def test_a_pngs_orientation_is_found_on_both_sides_of_its_pixels(tmp_path: Path, kind: str, after_pixels: bool) -> None:
    """EXIF, XMP, and ImageMagick's profile: a name, the length and hexadecimal digits."""
    block = exif(6).tobytes().removeprefix(b"Exif\0\0")
    profile = f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()
    body = {
        "eXIf": block,
        "iTXt": b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.format(6).encode(),
        "zTXt": b"Raw profile type exif\0\0" + zlib.compress(profile),
    }[kind]
    PICTURE.save(tmp_path / "picture.png")
    insert_chunk(tmp_path / "picture.png", png_chunk(kind.encode(), body), after_pixels)
    assert_same(tmp_path / "picture.png", (12, 20))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_no_pixel_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: str) -> None:
    PICTURE.save(tmp_path / "picture", file_format, exif=exif(6))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels were decoded"))
    assert read_size(tmp_path / "picture") == (12, 20)


@pytest.mark.parametrize(
    ("content", "limits", "words"),
    [
        (None, ImageLimits(), "no such image file"),
        (b"no image", ImageLimits(), "not a readable image"),
        (b"\x89PNG\r\n\x1a\n", ImageLimits(), "not a readable image"),
        ("PNG", ImageLimits(max_bytes=50), "larger than 50 bytes"),
        ("PNG", ImageLimits(max_side=19), "20x12 pixels; each side may have at most 19"),
        ("TIFF", ImageLimits(max_pixels=239), "20x12 pixels; at most 239 pixels"),
    ],
)
def test_what_is_no_image_or_beyond_the_limits_is_refused_as_on_loading(
    tmp_path: Path, content: bytes | str | None, limits: ImageLimits, words: str
) -> None:
    file = tmp_path / "picture"
    if isinstance(content, str):
        PICTURE.save(file, content)
    elif content is not None:
        file.write_bytes(content)
    for read in (read_size, load_image):
        with pytest.raises(ImageError, match=words):
            read(file, limits)
