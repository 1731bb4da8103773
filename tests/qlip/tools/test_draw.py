"""The overlay of a quadtree."""

from __future__ import annotations

from pathlib import PosixPath

import numpy as np
import pytest
import torch
from PIL import Image

from qlip import Leaves, draw_leaves, draw_weights


def test_every_border_of_every_leaf_is_drawn():
    leaves = Leaves.uniform((2, 3))
    drawing = np.asarray(draw_leaves(Image.new("RGB", (42, 28), (10, 10, 10)), leaves, colour=(255, 0, 0)))
    for line in (0, 14, 28):
        assert (drawing[line] == (255, 0, 0)).all()
    for line in (0, 14, 28, 42):
        assert (drawing[:, line] == (255, 0, 0)).all()


def test_only_leaves_that_were_split_have_lines():
    """One block of two cells is split; the other three and their borders stay as the image is."""
    split = [[0, 0, 1], [0, 1, 1], [0, 2, 2], [1, 0, 1], [1, 1, 1], [2, 0, 2], [2, 2, 2]]
    drawing = np.asarray(draw_leaves(Image.new("RGB", (40, 40)), Leaves(torch.tensor(split), (4, 4)), cell=10))
    lines = np.zeros((41, 41), dtype=bool)
    lines[[0, 10, 20], :21] = lines[:21, [0, 10, 20]] = True
    assert ((drawing > 0).all(-1) == lines).all() and ((drawing == 0).all(-1) == ~lines).all()


@pytest.mark.parametrize("size", [2, 4])
def test_an_image_without_a_split_stays_clean(size):
    corners = torch.cartesian_prod(torch.arange(0, 8, size), torch.arange(0, 8, size))
    leaves = Leaves(torch.nn.functional.pad(corners, (0, 1), value=size), (8, 8))
    assert draw_leaves(Image.new("RGB", (80, 80), (90, 20, 20)), leaves).getcolors() == [(81 * 81, (90, 20, 20))]


@pytest.mark.parametrize("level", [0, 60, 127, 128, 200, 255])
def test_lines_contrast_with_the_image_below_them(level):
    drawing = np.asarray(draw_leaves(Image.new("RGB", (28, 28), (level,) * 3), Leaves.uniform((2, 2))))
    line = int(drawing[14, 7, 0])
    assert (line > level) == (level < 128) and abs(line - level) > 70
    assert (drawing[5, 5] == level).all()


def test_what_lies_under_a_line_keeps_its_hue():
    image = Image.new("RGB", (28, 28), (60, 80, 80))
    image.paste((250, 0, 0), (12, 0, 16, 28))  # 4 pixels wide, as a small object is, with a line in its middle
    red, green, blue = np.asarray(draw_leaves(image, Leaves.uniform((2, 2))))[7, 14].tolist()
    assert red > 1.5 * max(green, blue)


def test_lines_of_a_drawing_larger_than_a_screen_are_wider():
    drawing = np.asarray(draw_leaves(Image.new("L", (24, 12)), Leaves.uniform((1, 2)), cell=1200))
    assert (drawing[600, 1150:1250] > 0).all(-1).sum() == 2
    thin = np.asarray(draw_leaves(Image.new("L", (24, 12)), Leaves.uniform((1, 2)), cell=1200, width=1))
    assert (thin[600, 1150:1250] > 0).all(-1).sum() == 1


def turned() -> Image.Image:
    """A photograph that is red above and blue below, stored on its side, as cameras do."""
    upright = Image.new("RGB", (28, 56), (0, 0, 200))
    upright.paste((200, 0, 0), (0, 0, 28, 28))
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.info["exif"] = exif.tobytes()
    return stored


def test_a_picture_is_drawn_upright_as_its_leaves_are():
    leaves = Leaves.uniform((4, 2))
    for drawing in (draw_leaves(turned(), leaves), draw_weights(turned(), leaves, torch.zeros(8))):
        pixels = np.asarray(drawing).astype(int)
        assert pixels.shape[0] > pixels.shape[1]
        top, bottom = pixels[5:20].mean((0, 1)), pixels[-20:-5].mean((0, 1))
        assert top[0] > top[2] + 50 and bottom[2] > bottom[0] + 50


def test_a_name_in_place_of_a_picture_is_refused():
    with pytest.raises(TypeError, match="the image is a PosixPath; it must be a Pillow image"):
        draw_leaves(PosixPath("a.png"), Leaves.uniform((2, 2)))
