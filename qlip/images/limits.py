"""Limits on image files, and checks of their structure before a pixel is decoded; the standard library only."""

from __future__ import annotations

import os
import re
import struct
import zlib
from dataclasses import dataclass, replace
from io import BytesIO
from typing import BinaryIO

TAG_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""TIFF's type of a value -> its size in bytes."""
SUB_DIRECTORIES = (0x8769, 0x8825, 0xA005)  # EXIF, GPS, interoperability: Pillow reads them with the image
MAX_SCANS = 500
"""Most scans of a JPEG file. A progressive one has about ten; each costs a pass over all pixels, and an empty one takes
ten bytes of the file."""

MAX_SCANNED = 32 * 10**9
"""Most scans times pixels of a JPEG file, some seconds of work."""
MAX_CHUNKS = 100_000
"""Most chunks of a PNG file, since each is read by Python. The largest file allowed has 65,536 of libpng's size."""
MAX_GIF_EXTENSIONS = 2**20
"""Most bytes of a GIF file before its first frame. Pillow joins comments in time that grows with their square."""

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GIF_SIGNATURES = (b"GIF87a", b"GIF89a")
_JPEG_SIGNATURE = b"\xff\xd8"
JPEG_SCAN, JPEG_END = 0xDA, 0xD9
JPEG_SEGMENTS = frozenset({*range(0xC0, 0xD0), *range(0xDA, 0xFF)})
"""Markers that a length follows."""
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # neither a byte 255 of the scan, nor a restart
_PNG_FACTS = (b"IHDR", b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"IEND")  # chunks with size and orientation


class ImageError(ValueError):
    """An image could not be read, or is refused; the message may be shown to the user."""


@dataclass(frozen=True)
class ImageLimits:
    """Limits on one image."""

    max_bytes: int = 20 * 2**20
    """Largest file, in bytes."""
    max_pixels: int = 64_000_000
    """Largest width x height."""
    max_side: int = 16_384
    """Longest side, in pixels."""
    min_side: int = 4
    """Shortest side, in pixels; arrays of three or fewer rows are easily mistaken for colour channels."""
    max_aspect: float = 64.0
    """Longest side over shortest; processors scale by the shortest, so a thin strip would become huge."""
    timeout: float = 10.0
    """Seconds a download may take."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")

    def check_bytes(self, size: int) -> None:
        """Raises ImageError for a file of more bytes than allowed."""
        if size > self.max_bytes:
            raise self.too_large()

    def read(self, file: BinaryIO) -> bytes:
        """Reads the rest of an open file; raises ImageError before reading if it is too large.

        A pipe's length is not known in advance.
        """
        if not file.seekable():
            data = file.read(self.max_bytes + 1)
            self.check_bytes(len(data))
            return data
        start = file.tell()
        size = file.seek(0, os.SEEK_END) - start  # `read(max_bytes)` would allocate them all
        self.check_bytes(size)
        file.seek(start)
        return file.read(size)

    def too_large(self) -> ImageError:
        """Builds the error for a file of more bytes than allowed."""
        return ImageError(f"the image file is larger than {self.max_bytes:,} bytes")

    def check_size(self, width: int, height: int) -> None:
        """Raises ImageError for sides, in pixels, beyond the limits."""
        found = f"the image is {width}x{height} pixels"
        long, short = max(width, height), min(width, height)
        if short < self.min_side:
            raise ImageError(f"{found}; each side needs at least {self.min_side}")
        if long > self.max_side:
            raise ImageError(f"{found}; each side may have at most {self.max_side}")
        if width * height > self.max_pixels:
            raise ImageError(f"{found}; at most {self.max_pixels:,} pixels are allowed")
        if long > self.max_aspect * short:
            raise ImageError(f"{found}; one side may be at most {self.max_aspect:g} times the other")


DEFAULT_LIMITS = ImageLimits()
"""Limits of images from clients of a server."""
LOCAL_LIMITS = ImageLimits(max_bytes=512 * 2**20, max_pixels=500_000_000, max_side=32_768)
"""Limits of images that the user of a command names."""
SHAPELESS_LIMITS = replace(LOCAL_LIMITS, max_pixels=180_000_000, min_side=1, max_aspect=32_768)
"""Limits for commands of the method alone, which take images of any shape and keep several copies of one."""


def check_structure(data: bytes) -> None:
    """Checks what Pillow does not: PNG checksums and end, and the memory of TIFF tags and GIF comments.

    Args:
        data: An image file of any format; only these three are checked.

    Raises:
        ImageError: the file is broken, truncated, not supported, or would take far more memory or time than its size.
        IndexError, struct.error: a GIF or TIFF file is truncated.
    """
    if data.startswith(_PNG_SIGNATURE):
        _check_png(data)
    elif data[:4] in TIFF_SIGNATURES:
        _check_tags(data)
    elif data.startswith(_GIF_SIGNATURES):
        _check_extensions(data)


def _check_png(data: bytes) -> None:
    """Checks the chunks of a PNG file up to its end, since Pillow skips the checksums of pixels and may miss the end.

    Raises:
        ImageError: a checksum is wrong, or the file is truncated.
    """
    view, place = memoryview(data), len(_PNG_SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if place + 12 > len(data):
            break
        (length,) = struct.unpack_from(">L", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(view[place + 4 : end]) != struct.unpack_from(">L", data, end)[0]:
            raise ImageError("not a readable image: a checksum in the PNG file is wrong")
        if data[place + 4 : place + 8] == b"IEND":
            return
        place = end + 4
    else:
        raise too_many_chunks()
    raise ImageError("not a readable image: the PNG file is truncated")


def too_many_chunks() -> ImageError:
    """Builds the error for a PNG file of more chunks than allowed."""
    return ImageError(f"the PNG file has more than {MAX_CHUNKS:,} chunks; save it again")


def check_scans(data: bytes, pixels: int) -> None:
    """Raises ImageError for a JPEG file of `pixels` pixels with far more scans than cameras or programs write."""
    if not data.startswith(_JPEG_SIGNATURE):
        return
    most = min(MAX_SCANS, MAX_SCANNED // pixels)
    if data.count(b"\xff\xda") <= most:
        return
    if (scans := count_scans(data)) > most:
        raise ImageError(f"the JPEG file has {scans:,} scans; at most {most} are allowed at its size")


def count_scans(data: bytes) -> int:
    """Counts the scans of a JPEG file up to the image's end, after which phones put a video of any bytes.

    Where libjpeg might parse bytes differently, the costlier reading counts: only a segment's own bytes are skipped.
    """
    scans, place = 0, len(_JPEG_SIGNATURE)
    while (marker := _JPEG_MARKER.search(data, place)) and (code := marker[1][0]) != JPEG_END:
        scans += code == JPEG_SCAN
        place = marker.end()
        if code in JPEG_SEGMENTS:
            place += max(2, int.from_bytes(data[place : place + 2]))
    return scans


def _check_extensions(data: bytes) -> None:
    """Checks that little comes before a GIF file's first frame; walks over the blocks as Pillow does.

    Raises:
        ImageError: comments and other extensions take more than allowed.
        IndexError: the file is truncated.
    """
    start = place = 13 + (3 * 2 ** ((data[10] & 7) + 1) if data[10] & 128 else 0)
    while data[place : place + 1] not in (b",", b";"):
        if data[place] != ord("!"):  # unknown: Pillow looks at the next byte
            place += 1
            continue
        place += 2
        while size := data[place]:
            place += size + 1
            if place - start > MAX_GIF_EXTENSIONS:
                most = f"{MAX_GIF_EXTENSIONS:,} bytes"
                raise ImageError(f"the GIF file has more than {most} of comments before its image; save it again")
        place += 1


def _check_tags(data: bytes) -> None:
    """Checks that a TIFF file's tags hold no more bytes than the file, which they do if many point to the same bytes.

    Pillow copies the value of each tag, so a crafted file of 15 MB can take 8 GB.

    Raises:
        ImageError: they hold more.
        struct.error: the file is truncated.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")  # BigTIFF
    count, entry, offset = (order + code for code in (("Q", "HHQ8s", "Q") if big else ("H", "HHL4s", "L")))
    places, seen, total = [struct.unpack_from(offset, data, 8 if big else 4)[0]], set(), 0
    while places:
        place = places.pop()
        if place in seen or not 0 < place < len(data):
            continue
        seen.add(place)
        (entries,) = struct.unpack_from(count, data, place)
        start, size = place + struct.calcsize(count), struct.calcsize(entry)
        for number in range(min(entries, (len(data) - start) // size)):
            tag, kind, values, value = struct.unpack_from(entry, data, start + number * size)
            total += TAG_SIZES.get(kind, 0) * values
            if total > len(data):
                raise ImageError("not a readable image: the TIFF file's tags hold more bytes than the file")
            if tag in SUB_DIRECTORIES:
                places.append(struct.unpack(offset, value)[0])


def check_header(file: BinaryIO) -> BinaryIO:
    """Checks the part of a file that Pillow reads to find its format and size.

    Returns:
        A file that Pillow finds size and metadata in: of a PNG a copy without its pixels, else `file` itself. `file` is
        at its beginning.

    Raises:
        ImageError: the header would take far more memory or time than a header should.
        IndexError, struct.error: a GIF or TIFF file is truncated.
    """
    start, header = file.read(8), file
    file.seek(0)
    if start == _PNG_SIGNATURE:
        header = _drop_pixels(file)
    elif start[:4] in TIFF_SIGNATURES or start[:6] in _GIF_SIGNATURES:
        check_structure(file.read())
    file.seek(0)
    return header


def _drop_pixels(file: BinaryIO) -> BinaryIO:
    """Copies the size and metadata of a PNG file, where they may follow the pixels.

    Raises:
        ImageError: the file has too many chunks.
    """
    kept = [file.read(len(_PNG_SIGNATURE))]
    for _ in range(MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            break
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind in _PNG_FACTS:
            kept += [head, file.read(length + 4)]
        else:
            file.seek(length + 4, os.SEEK_CUR)
        if kind == b"IEND":
            break
    else:
        raise too_many_chunks()
    return BytesIO(b"".join(kept))
