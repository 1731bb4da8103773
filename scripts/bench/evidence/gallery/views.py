"""Pictures of what each tower is given: CLIP's small square, and QLIP's leaves, each of one patch's pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from llava.model.multimodal_encoder.base import VisionTower
from qlip import draw_leaves, extract_patches

GAP, CAPTION = 8, 26
"""Between pictures, and the height of the line below them, in pixels."""


def to_picture(pixels: Tensor, processor: object) -> Image.Image:
    """Converts normalised pixels, float (3, H, W), to the picture that a processor made them of."""
    mean, std = (torch.tensor(getattr(processor, name))[:, None, None] for name in ("image_mean", "image_std"))
    levels = ((pixels.float().cpu() * std + mean) * 255).round().clamp(0, 255)
    return Image.fromarray(levels.permute(1, 2, 0).byte().numpy())


def draw_clip_view(pixels: Tensor, processor: object, side: int) -> Image.Image:
    """Draws what CLIP's tower is given, float (3, H, W), at the size of the picture, its pixels as squares."""
    return to_picture(pixels, processor).resize((side, side), Image.Resampling.NEAREST)


def draw_qlip_view(pixels: Tensor, tower: VisionTower) -> Image.Image:
    """Draws what QLIP's tower is given of an image, float (3, H, W): every leaf in one patch's pixels, outlined."""
    leaves = tower.partition(pixels)
    side = tower.config.patch_size
    patches = extract_patches(pixels, leaves, side)
    rows, cols = leaves.grid
    canvas = Image.new("RGB", (cols * side, rows * side))
    for (row, col, size), patch in zip(leaves.boxes.tolist(), patches, strict=True):
        leaf = to_picture(patch, tower.image_processor).resize((size * side,) * 2, Image.Resampling.NEAREST)
        canvas.paste(leaf, (col * side, row * side))
    return draw_leaves(canvas, leaves)


def join_views(views: Sequence[tuple[str, Image.Image]], height: int) -> Image.Image:
    """Draws pictures of one height side by side on white, with a line of text below each."""
    shown = [(text, view.resize((round(view.width * height / view.height), height))) for text, view in views]
    width = sum(view.width for _, view in shown) + GAP * (len(shown) - 1)
    sheet = Image.new("RGB", (width, height + CAPTION), (255, 255, 255))
    pen, font, left = ImageDraw.Draw(sheet), ImageFont.load_default(16), 0
    for text, view in shown:
        sheet.paste(view, (left, 0))
        pen.text((left, height + 4), text, (0, 0, 0), font)
        left += view.width + GAP
    return sheet
