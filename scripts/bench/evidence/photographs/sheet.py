"""A contact sheet: every photograph with its tree and the number of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from qlip import QLIPConfig, draw_leaves
from qlip.cutting import ImageCutter
from scripts.bench.evidence.photographs.collection import Photograph

COLUMNS, SIDE, CAPTION = 5, 256, 18
"""Pictures in a row; longest side of one and height of its caption, in pixels."""


def draw_sheet(photographs: Sequence[Photograph], settings: QLIPConfig, columns: int = COLUMNS) -> Image.Image:
    """Draws the trees of all photographs under one setting, for CLIP ViT-L/14-336."""
    cutter = ImageCutter()
    rows = -(-len(photographs) // columns)
    sheet = Image.new("RGB", (columns * SIDE, rows * (SIDE + CAPTION)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, item in enumerate(photographs):
        left, top = index % columns * SIDE, index // columns * (SIDE + CAPTION)
        leaves = cutter.find_leaves(item.picture, settings)
        drawn = draw_leaves(item.picture, leaves, cell=max(1, (SIDE - 5) // max(leaves.grid)))
        drawn.thumbnail((SIDE - 4, SIDE - 4), Image.Resampling.LANCZOS)
        sheet.paste(drawn, (left, top))
        pen.text((left, top + SIDE - 2), f"{item.name}: {len(leaves)}", fill="black")
    return sheet
