"""Draws a quadtree over its image, and images beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from qlip.config import check_count
from qlip.images.rgb import to_rgb
from qlip.quadtree import Leaves

CAPTION = 20
"""Height of a line of text in a sheet, in pixels."""
GAP = 8
"""Space between the images of a sheet, in pixels."""
STRENGTH = 0.6
"""Share of black or white in a line, the rest is the image."""
MIDDLE = 128
"""Grey level from which lines are darker than the image."""
AROUND = 24
"""Largest radius, in pixels, of the area whose brightness decides whether a line is dark or bright."""
SCREEN = 1200
"""Longer side, in pixels, of the screen space that a larger drawing is shown in."""


def draw_leaves(
    image: Image.Image,
    leaves: Leaves,
    cell: int | None = None,
    colour: tuple[int, int, int] | None = None,
    width: int | None = None,
) -> Image.Image:
    """Draws thin lines over an image where its quadtree splits.

    Leaves of one cell have a border, and larger ones that are smaller than the largest: a flat image stays clean, and
    a uniform grid is drawn whole.

    Args:
        image: the image of the leaves, of any mode; drawn upright. Its size need not be whole cells.
        leaves: its tree.
        cell: side of a cell in the drawing, in pixels; by default the image's own, but at least 4.
        colour: of the lines; by default each pixel becomes darker where the image around it is bright, else brighter,
            so that what lies under a line stays visible.
        width: of the lines, in pixels; by default 1, and more in a drawing that no screen shows whole.

    Returns:
        A new RGB image of cols * cell by rows * cell pixels, plus one for the last line.
    """
    image = to_rgb(image)
    rows, cols = leaves.grid
    if cell is not None:
        check_count("cell", cell)
    else:
        cell = max(4, round(image.width / cols))
    canvas = Image.new("RGB", (cols * cell + 1, rows * cell + 1))
    resized = image.resize((cols * cell, rows * cell), Image.Resampling.BICUBIC)
    for corner in ((1, 1), (1, 0), (0, 1), (0, 0)):  # the column and row of the last line continue the image's
        canvas.paste(resized, corner)
    lines = _draw_lines(leaves, cell, canvas.size, width or max(1, round(max(canvas.size) / SCREEN)))
    if colour is not None:
        canvas.paste(colour, mask=lines)
        return canvas
    around = canvas.convert("L").filter(ImageFilter.BoxBlur(min(max(3, cell), AROUND)))
    contrast = around.point([255 if level < MIDDLE else 0 for level in range(256)]).convert("RGB")
    canvas.paste(Image.blend(canvas, contrast, STRENGTH), mask=lines)
    return canvas


def _draw_lines(leaves: Leaves, cell: int, size: tuple[int, int], width: int) -> Image.Image:
    """Draws the mask of the lines, an "L" image that is 255 in them."""
    mask = Image.new("L", size)
    pen = ImageDraw.Draw(mask)
    largest = int(leaves.sizes.max()) if len(leaves) else 1
    for row, col, side in leaves.boxes.tolist():
        if side == 1 or side < largest:
            left, top, right, bottom = col * cell, row * cell, (col + side) * cell, (row + side) * cell
            # Each in one direction: two leaves' shared line is then at the same pixels.
            for line in ((left, top, right, top), (left, bottom, right, bottom)):
                pen.line(line, fill=255, width=width)
            for line in ((left, top, left, bottom), (right, top, right, bottom)):
                pen.line(line, fill=255, width=width)
    return mask


def draw_sheet(tiles: Sequence[tuple[str, Image.Image]], side: int) -> Image.Image:
    """Draws images beside each other, with a line of text below each.

    Args:
        tiles: text and image; images of at most `side` x `side` pixels.
        side: of a place in the sheet, in pixels.

    Returns:
        A new RGB image, about as many tiles wide as high.
    """
    font = ImageFont.load_default(CAPTION - 8)
    cols = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / cols)
    width, height = side + GAP, side + CAPTION + GAP
    sheet = Image.new("RGB", (cols * width + GAP, rows * height + GAP), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for place, (text, image) in enumerate(tiles):
        left, top = place % cols * width + GAP, place // cols * height + GAP
        sheet.paste(image, (left, top))
        while pen.textlength(text, font) > side:  # the tokens are at the end
            text = "..." + text[4:]
        pen.text((left, top + image.height + 3), text, (0, 0, 0), font)
    return sheet
