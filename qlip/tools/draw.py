"""Draws a quadtree over its image."""

from __future__ import annotations

from PIL import Image, ImageDraw

from qlip.quadtree import Leaves


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
