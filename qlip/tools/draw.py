"""Draws a quadtree over its image, and images beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from qlip.quadtree import Leaves

CAPTION = 20
"""Height of a line of text in a sheet, in pixels."""
GAP = 8
"""Between the images of a sheet, in pixels."""


def draw_leaves(
    image: Image.Image, leaves: Leaves, cell: int | None = None, colour: tuple[int, int, int] = (255, 255, 255)
) -> Image.Image:
    """Draws the borders of all leaves over an image.

    Args:
        image: the image of the leaves; its size need not be whole cells.
        leaves: its tree.
        cell: side of a cell in the drawing, in pixels; by default the image's own, but at least 4.
        colour: of the lines, on a dark rim so that they show on any background.

    Returns:
        A new RGB image of cols * cell by rows * cell pixels, plus one for the last line.
    """
    rows, cols = leaves.grid
    if cell is None:
        cell = max(4, round(image.width / cols))
    canvas = Image.new("RGB", (cols * cell + 1, rows * cell + 1))
    canvas.paste(image.convert("RGB").resize((cols * cell, rows * cell), Image.Resampling.BICUBIC))
    boxes = [
        (col * cell, row * cell, (col + size) * cell, (row + size) * cell) for row, col, size in leaves.boxes.tolist()
    ]
    rim = Image.new("L", canvas.size)
    pen = ImageDraw.Draw(rim)
    for box in boxes:
        pen.rectangle(box, outline=110, width=3 if cell >= 10 else 1)
    canvas.paste((0, 0, 0), mask=rim)
    pen = ImageDraw.Draw(canvas)
    for box in boxes:
        pen.rectangle(box, outline=colour)
    return canvas


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
