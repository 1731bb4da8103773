"""Image files as cameras and attackers write them: turned upright by one tag, refused when broken, never unfolded."""

from __future__ import annotations

import base64
import io
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from llava.images import ImageError, ImageLimits, decode_image, load_image, load_image_from_base64, load_images
from qlip.images.rgb import find_orientation
from scripts.soak import hostile

ORIENTATION = 0x0112


def blocks(width: int = 64, height: int = 40) -> Image.Image:
    """A picture without any symmetry, which all formats keep well."""
    colours = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(colours.repeat(8, 0).repeat(8, 1))


def exif(orientation: int, order: str = "<") -> bytes:
    """An EXIF block that holds the orientation after another tag."""
    header = (b"II" if order == "<" else b"MM") + struct.pack(order + "HL", 42, 8)
    width = struct.pack(order + "HHLHH", 0x0100, 3, 1, 64, 0)
    turned = struct.pack(order + "HHLHH", ORIENTATION, 3, 1, orientation, 0)
    return header + struct.pack(order + "H", 2) + width + turned + bytes(4)


def upright(data: bytes) -> bytes:
    """The pixels as Pillow itself turns them upright."""
    with Image.open(io.BytesIO(data)) as image:
        return ImageOps.exif_transpose(image).convert("RGB").tobytes()


# Orientation


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied_as_pillow_applies_it(kind: str, orientation: int) -> None:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    data = hostile.saved(blocks(), kind, exif=tags)
    assert decode_image(data).tobytes() == upright(data)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_both_byte_orders_are_read(order: str, orientation: int) -> None:
    data = hostile.saved(blocks(), "JPEG", exif=exif(orientation, order))
    assert decode_image(data).tobytes() == upright(data)
    assert find_orientation(exif(orientation, order)) == find_orientation(b"Exif\0\0" + exif(orientation, order))


def test_orientation_in_xmp_or_imagemagicks_profile_counts_where_exif_does_not_say() -> None:
    xmp, profile, both = PngInfo(), PngInfo(), PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    profile.add_text("Raw profile type exif", "\nexif\n  56\n" + (b"Exif\0\0" + exif(3)).hex())
    both.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    files = [hostile.saved(blocks(), pnginfo=info) for info in (xmp, profile)]
    files.append(hostile.saved(blocks(), pnginfo=both, exif=exif(8)))
    assert [decode_image(data).tobytes() for data in files] == [upright(data) for data in files]
    assert decode_image(files[0]).size == (40, 64)


def test_an_upright_image_says_nothing_of_its_orientation_any_more() -> None:
    image = decode_image(hostile.saved(blocks(), "JPEG", exif=exif(6)))
    again = decode_image(hostile.saved(image))
    assert again.tobytes() == image.tobytes()


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"II",
        b"II*\0\xff\xff\xff\xff",
        b"XX*\0" + bytes(60),
        exif(6)[:20],
        exif(6).replace(struct.pack("<H", ORIENTATION), b"\0\0"),
        None,
        "text",
    ],
)
def test_an_exif_block_without_the_tag_or_broken_has_no_orientation(block: object) -> None:
    assert find_orientation(block) is None


def test_tags_that_point_at_the_same_bytes_are_not_unfolded() -> None:
    data = hostile.png_with_tags(tags=100, size=2**20)
    tracemalloc.start()
    try:
        image = decode_image(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert image.getpixel((0, 0)) == (0, 128, 128)
    assert peak < 10 * 2**20  # the file's own megabyte a few times over; unfolded, it would be a hundred


# Broken files


KINDS = {
    "PNG": {},
    "JPEG": {},
    "progressive JPEG": {"progressive": True},
    "WEBP": {},
    "GIF": {},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
    "raw TIFF": {},
    "PPM": {},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", KINDS)
def test_a_truncated_file_is_refused_wherever_it_ends(name: str) -> None:
    data = hostile.saved(blocks(), name.rpartition(" ")[2], **KINDS[name])
    whole = decode_image(data).tobytes()
    for length in range(0, len(data), max(1, len(data) // 400)):
        try:
            image = decode_image(data[:length])
        except ImageError:
            continue
        assert image.tobytes() == whole, f"answered the first {length} of {len(data)} bytes"


def test_any_changed_byte_of_a_png_is_noticed() -> None:
    data = hostile.saved(blocks(16, 16))
    decode_image(data)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0x10
        with pytest.raises(ImageError):
            decode_image(bytes(changed))


def test_a_jpeg_of_many_scans_is_refused_before_any_is_decoded() -> None:
    with pytest.raises(ImageError, match=r"has 1,\d+ scans; at most 500 are allowed"):
        decode_image(hostile.jpeg_of_scans(64, 1000))
    assert decode_image(hostile.jpeg_of_scans(64, 400)).size == (64, 64)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("size", [(4, 4), (64, 48)])
def test_a_tiff_as_pillow_writes_it_has_no_more_tags_than_bytes(
    size: tuple[int, int], big: bool, compression: str | None
) -> None:
    tags = Image.Exif()
    tags[ORIENTATION] = 1
    tags.get_ifd(0x8769)[0x9286] = b"a comment"
    data = hostile.saved(hostile.noise(*size), "TIFF", compression=compression, big_tiff=big, exif=tags)
    assert decode_image(data).tobytes() == hostile.noise(*size).tobytes()


@pytest.mark.parametrize("tag", [0x8769, 0x8825])
def test_tags_that_unfold_in_a_directory_below_are_refused(tag: int) -> None:
    base = hostile.saved(hostile.noise(16, 16), "TIFF", exif=exif(1))
    (start,) = struct.unpack_from("<L", base, 4)
    (count,) = struct.unpack_from("<H", base, start)
    entries = [base[start + 2 + 12 * i : start + 14 + 12 * i] for i in range(count)]
    below = len(base) + 1000
    directory = hostile.directory([*entries, struct.pack("<HHLL", tag, 4, 1, below)], 0, 0, 0)
    unfolding = hostile.directory([], 100, 5000, 8)
    data = base[:4] + struct.pack("<L", len(base)) + base[8:] + directory.ljust(1000, b"\0") + unfolding
    with pytest.raises(ImageError, match="tags hold more bytes than the file"):
        decode_image(data)


def test_a_tiff_whose_tags_unfold_is_refused_before_any_is_read() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="the TIFF file's tags hold more bytes than the file"):
            decode_image(hostile.tiff_with_tags(tags=100, size=2**20))
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


def test_a_file_of_too_many_bytes_is_refused() -> None:
    with pytest.raises(ImageError, match="larger than 1,000 bytes"):
        decode_image(hostile.saved(hostile.noise(64, 64)), ImageLimits(max_bytes=1000))


# Base64 text


def test_base64_text_may_be_wrapped_as_mime_wraps_it() -> None:
    data = hostile.saved(blocks())
    for text in (base64.encodebytes(data).decode(), base64.b64encode(data).decode().replace("A", "A\r\n ")):
        assert load_image_from_base64(text).tobytes() == blocks().tobytes()
        assert load_image(f"data:image/png;base64,{text}").tobytes() == blocks().tobytes()
        assert load_image_from_base64(f"data:image/png;base64,{text}").tobytes() == blocks().tobytes()


def test_the_error_of_base64_text_without_prefix_names_the_prefix() -> None:
    text = base64.b64encode(hostile.saved(blocks())).decode()
    with pytest.raises(ImageError, match="base64 text needs data:image/png;base64, before it"):
        load_image(text, allow_paths=False)


def test_wrapped_base64_counts_by_the_bytes_that_it_holds() -> None:
    data = hostile.saved(hostile.noise(32, 32))
    text = base64.encodebytes(data).decode()
    assert load_image_from_base64(text, ImageLimits(max_bytes=len(data))).size == (32, 32)
    with pytest.raises(ImageError, match="larger than"):
        load_image_from_base64(text, ImageLimits(max_bytes=len(data) - 1))


def test_an_empty_name_is_said_to_be_that() -> None:
    with pytest.raises(ImageError, match="^the name of an image file is empty$"):
        load_images([""])


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.9, 0.5])
def test_a_truncated_file_is_said_to_be_that(name: str, share: float) -> None:
    file = io.BytesIO()
    Image.effect_noise((80, 64), 60).convert("RGB").save(file, name)
    data = file.getvalue()
    with pytest.raises(ImageError, match=f"^not a readable image: the {name} file is truncated$"):
        decode_image(data[: int(len(data) * share)])
