"""QLIPImageProcessor: any picture becomes whole cells, upright and uncropped; at CLIP's size, CLIP's numbers."""

from __future__ import annotations

import re
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil

from qlip import QLIPConfig, QLIPImageProcessor
from qlip.image_processing import to_pillow
from qlip.images.rgb import to_rgb
from qlip.roots import fewest_leaves

GRID = QLIPImageProcessor(qlip=QLIPConfig(geometry="grid"))
"""Keeps images of whole cells as they are."""


def gradient_picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width, dtype=np.uint8)
    pixels[..., 1] = np.linspace(0, 255, height, dtype=np.uint8)[:, None]
    return Image.fromarray(pixels).convert(mode)


def test_a_native_picture_gives_the_pixels_of_clips_processor():
    picture = gradient_picture(336, 336)
    clip = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    expected = clip.preprocess(picture, return_tensors="pt")["pixel_values"]
    ours = QLIPImageProcessor().preprocess(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"do_rescale": False, "do_normalize": False},
        {"image_mean": 0.5, "image_std": 0.25},
    ],
    ids=lambda fields: ", ".join(fields),
)
def test_every_field_of_clips_normalisation_is_taken_over(fields):
    picture = gradient_picture(112, 112)
    clip = CLIPImageProcessorPil(
        size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112}, do_convert_rgb=True, **fields
    )
    expected = clip.preprocess(picture, return_tensors="pt")["pixel_values"].float()
    ours = QLIPImageProcessor.from_clip(clip, 14, 112, QLIPConfig())
    got = ours.preprocess(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "mode",
    ["RGB", "RGBA", "RGBa", "L", "LA", "La", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB", "1", "I", "F", "I;16"],
)
def test_every_pillow_mode_is_read(mode):
    picture = gradient_picture(28, 42)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    elif mode == "I":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.int32) * 257)
    elif mode in ("PA", "La"):
        picture = picture.convert("LA").convert(mode)
    elif mode == "RGBa":
        picture = picture.convert("RGBA").convert(mode)
    else:
        picture = picture.convert(mode)
    assert picture.mode == mode
    pixels = GRID.preprocess(picture, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 42, 28)
    assert torch.isfinite(pixels).all()
    assert pixels.std() > 0.3


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_a_picture_without_pixels_is_refused(size):
    with pytest.raises(ValueError, match=f"the image has {size[0]} x {size[1]} pixels; it needs at least one"):
        QLIPImageProcessor().preprocess(Image.new("RGB", size))


def test_sixteen_bit_grey_keeps_its_brightness():
    grey = Image.fromarray(np.full((14, 14), 128 * 257, np.uint16))
    assert to_rgb(grey).getpixel((0, 0)) == (128, 128, 128)


def test_floats_that_are_no_numbers_are_black():
    assert to_rgb(Image.fromarray(np.float32([[np.nan, 1.0]]))).tobytes() == bytes([0] * 3 + [255] * 3)


@pytest.mark.parametrize(("values", "grey"), [([0.0, 0.5, 1.0], 128), ([0.0, 128.0, 255.0], 128)])
def test_float_pictures_keep_their_brightness(values, grey):
    assert to_rgb(Image.fromarray(np.float32([values]))).getpixel((1, 0)) == (grey,) * 3


def test_transparency_is_laid_over_white():
    picture = Image.new("RGBA", (14, 14), (0, 0, 0, 0))
    assert to_rgb(picture).getpixel((5, 5)) == (255, 255, 255)
    grey = Image.fromarray(np.array([[0, 257]], np.uint16))
    grey.info["transparency"] = 0  # as of a PNG file with 16 bits
    assert [to_rgb(grey).getpixel((column, 0)) for column in (0, 1)] == [(255,) * 3, (1,) * 3]
    palette = Image.new("P", (14, 14), 0)
    palette.info["transparency"] = 0
    assert to_rgb(palette).getpixel((5, 5)) == (255, 255, 255)


def write_png(depth: int, colour: int, row: bytes, clear: bytes) -> bytes:
    """A PNG of one row of two pixels, written by hand: bits a channel, colour type, pixels, transparent colour."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))

    head = struct.pack(">LLBBBBB", 2, 1, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", head), (b"tRNS", clear), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize(
    ("depth", "colour", "row", "clear", "left"),
    [
        (1, 0, b"\x40", b"\0\1", (0,) * 3),
        (2, 0, b"\x60", b"\0\2", (85,) * 3),
        (4, 0, b"\x59", b"\0\x09", (85,) * 3),
        (8, 0, b"\x55\xaa", b"\0\xaa", (85,) * 3),
        (16, 2, bytes(range(6)) + b"\x12\x34\x56\x78\x9a\xbc", b"\x12\x34\x56\x78\x9a\xbc", (0, 2, 4)),
    ],
)
def test_the_transparent_colour_of_a_png_is_laid_over_white_at_any_depth(depth, colour, row, clear, left):
    """Its right pixel is transparent."""
    with Image.open(BytesIO(write_png(depth, colour, row, clear))) as picture:
        shown = to_rgb(picture)
    assert [shown.getpixel((column, 0)) for column in (0, 1)] == [left, (255,) * 3]


def test_exif_orientation_is_applied():
    picture = gradient_picture(28, 14)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    path_free = Image.frombytes("RGB", picture.size, picture.tobytes())
    path_free.info["exif"] = exif.tobytes()
    path_free._exif = exif
    pixels = GRID.preprocess(path_free, return_tensors="pt")["pixel_values"]
    assert pixels.shape[2:] == (28, 14)


@given(
    height=st.integers(1, 4000),
    width=st.integers(1, 4000),
    image_size=st.none() | st.integers(1, 900),
    max_cells=st.integers(1, 20000),
    max_tokens=st.none() | st.integers(1, 2000),
    coarsest=st.sampled_from(["any", "native"]),
    layout=st.sampled_from(["aligned", "centered"]),
    geometry=st.sampled_from(["grid", "native"]),
)
@settings(max_examples=150)
def test_any_size_becomes_an_affordable_grid(height, width, **values):
    config = QLIPConfig(**values)
    processor = QLIPImageProcessor(qlip=config)
    rows, cols = processor.choose_grid(height, width)
    assert rows >= 1 and cols >= 1
    assert rows * cols <= config.max_cells
    if config.max_tokens is not None:
        assert fewest_leaves(config, (rows, cols), processor.native_grid) <= config.max_tokens


@pytest.mark.parametrize(("size", "grid"), [(None, (34, 46)), (336, (24, 32)), (14, (1, 1))])
def test_the_shorter_side_is_resized_and_the_aspect_kept(size, grid):
    processor = QLIPImageProcessor(qlip=QLIPConfig(geometry="grid", image_size=size))
    assert processor.choose_grid(480, 640) == grid


def test_different_sizes_come_as_a_list_and_equal_ones_as_a_tensor():
    processor = GRID
    one, two = gradient_picture(28, 28), gradient_picture(56, 28)
    assert isinstance(processor.preprocess([one, two], return_tensors="pt")["pixel_values"], list)
    assert processor.preprocess([one, one], return_tensors="pt")["pixel_values"].shape == (2, 3, 28, 28)
    assert processor(np.asarray(one), return_tensors="np")["pixel_values"].shape == (1, 3, 28, 28)


def test_arrays_of_pixels_are_cut_like_tensors():
    processor, picture = QLIPImageProcessor(), gradient_picture(84, 56)
    (array,), tensors = (processor(picture, return_tensors=kind)["pixel_values"] for kind in (None, "pt"))
    assert isinstance(array, np.ndarray)
    assert torch.equal(processor.partition(array).boxes, processor.partition(tensors[0]).boxes)
    assert torch.equal(processor.cut(array).leaves.boxes, processor.cut(tensors[0]).leaves.boxes)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["tensor", "array"])
@pytest.mark.parametrize("first", [True, False], ids=["channels first", "channels last"])
def test_tensors_and_arrays_are_the_pictures_they_hold(dtype, form, first):
    """Floats are shares of white; half precision holds a grey value to within a step of it."""
    expected = np.array(gradient_picture(28, 42))
    pixels = torch.from_numpy(expected).permute(2, 0, 1) if first else torch.from_numpy(expected)
    image = pixels if dtype == torch.uint8 else (pixels.double() / 255).to(dtype)
    if form == "array":
        image = image.float().numpy() if dtype == torch.bfloat16 else image.numpy()
    plain = {"image_mean": (0.0,) * 3, "image_std": (1 / 255,) * 3}
    got = (
        QLIPImageProcessor(qlip=GRID.qlip, **plain)
        .preprocess(image, return_tensors="pt")["pixel_values"][0]
        .permute(1, 2, 0)
    )
    atol = 1 if dtype == torch.bfloat16 else 0
    assert np.abs(got.numpy().round() - expected).max() <= atol


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_pictures_as_narrow_as_channels_are_read_channels_first_from_a_tensor(width):
    pixels = np.array(gradient_picture(width, 20))
    assert np.array_equal(to_pillow(torch.from_numpy(pixels).permute(2, 0, 1)), pixels)
    assert np.array_equal(to_pillow(pixels), pixels)


def test_settings_survive_save_and_load(tmp_path):
    processor = QLIPImageProcessor(16, 224, (0.5,) * 3, (0.25,) * 3, QLIPConfig(alpha=float("inf"), image_size=448))
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file()
    loaded = QLIPImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.crop_size == {"height": 224, "width": 224}
    assert loaded.size == {"shortest_edge": 224}


def test_values_given_as_it_is_loaded_replace_those_of_the_file(tmp_path, caplog):
    QLIPImageProcessor(16, 224, qlip=QLIPConfig(max_tokens=50)).save_pretrained(tmp_path)
    changed = {"qlip": {"max_tokens": 10}, "image_mean": [0.0] * 3}
    loaded = QLIPImageProcessor.from_pretrained(tmp_path, **changed)
    assert (loaded.qlip.max_tokens, loaded.image_mean, loaded.patch_size) == (10, [0.0] * 3, 16)
    assert not caplog.records
    QLIPImageProcessor.from_pretrained(tmp_path, use_fast=True)
    assert "image_mean, image_std, qlip; ignored: use_fast" in caplog.text
    CLIPImageProcessorPil().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"lacks 'patch_size': it is not a QLIP .* give the model's own to qlip\.attach"
    ):
        QLIPImageProcessor.from_pretrained(tmp_path)


def test_errors_name_the_value():
    with pytest.raises(TypeError, match="int64 array; it must be a Pillow image, or uint8 or floats"):
        QLIPImageProcessor().preprocess(np.zeros((4, 4, 3), dtype=np.int64))
    with pytest.raises(TypeError, match="the image is a bytes; it must be a Pillow image"):
        QLIPImageProcessor().preprocess(b"a file")
    with pytest.raises(ValueError, match=r"floats from -2.0 to 0.0; allowed are 0 to 1"):
        QLIPImageProcessor().preprocess(np.float32([[0, -2.0]]))
    with pytest.raises(ValueError, match=r"floats from 0\.0 to 1\.0000001"):
        QLIPImageProcessor().preprocess(np.float32([[0, 1.0000001]]))
    for wrong in ((0, 1, 1), (1, 1), (1, float("nan"), 1)):
        with pytest.raises(ValueError, match=r"image_std is \(.*\); it must be three finite numbers above 0"):
            QLIPImageProcessor(image_std=wrong)
    for odd in (("a", 1, 1), 0.5, None, "123"):
        with pytest.raises(TypeError, match="image_mean is .*; it must be three numbers"):
            QLIPImageProcessor(image_mean=odd)
    with pytest.raises(ValueError, match="floats from nan to nan"):
        QLIPImageProcessor().preprocess(np.float32([[0, np.nan]]))
    with pytest.raises(TypeError, match=r"tower is a Linear; it must be a QLIPVisionModel\. qlip\.attach"):
        QLIPImageProcessor.for_tower(torch.nn.Linear(1, 1))
    for call in (QLIPImageProcessor().preprocess, QLIPImageProcessor().pack):
        with pytest.raises(ValueError, match="there is no image; give at least one"):
            call([])
    with pytest.raises(ValueError, match="return_tensors is 'tf'"):
        QLIPImageProcessor().preprocess(gradient_picture(14, 14), return_tensors="tf")
    with pytest.raises(ValueError, match="native_size is 10;"):
        QLIPImageProcessor(14, 10)


def test_a_batch_in_one_array_is_a_batch_of_images():
    batch = np.stack([np.array(gradient_picture(28, 42))] * 2)
    for images in (batch, torch.from_numpy(batch).permute(0, 3, 1, 2)):
        assert torch.equal(
            GRID.preprocess(images, return_tensors="pt")["pixel_values"],
            GRID.preprocess(list(batch), return_tensors="pt")["pixel_values"],
        )
        assert torch.equal(GRID.pack(images)["leaf_boxes"], GRID.pack(list(batch))["leaf_boxes"])


@pytest.mark.parametrize("shape", [(0, 30, 3), (30, 0), (30, 30, 5), (30, 30, 2), (30,), (2, 2, 2, 2, 3)])
def test_an_array_of_another_shape_is_named(shape):
    with pytest.raises(ValueError, match=re.escape(f"the image is an array of {shape}; it must be (H, W), or with")):
        GRID.preprocess([np.zeros(shape, np.uint8)])
