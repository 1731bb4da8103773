"""Times of the whole preparation of a photograph, by the default settings and by CLIP's image processor."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import skimage.data
from PIL import Image
from transformers import CLIPImageProcessorPil

from qlip import QLIPConfig
from qlip.cutting import ImageCutter
from scripts.bench.pictures import PHOTOGRAPHS
from scripts.bench.quadtree_times import milliseconds
from scripts.markdown_table import table_head, table_row

SENSOR_NOISE = 2.0
"""Deviation of the noise that is laid over an enlarged photograph, of 255 levels."""


@dataclass(frozen=True)
class Preparation:
    """Milliseconds for photographs of one size: medians over photographs of each one's fastest turn."""

    size: tuple[int, int]
    """(width, height) in pixels."""
    tokens: float
    cut: float
    """`ImageCutter.prepare`: resized, cut by the quadtree of its detail, patches normalised."""
    clip: float
    """`CLIPImageProcessorPil`: resized, cropped and normalised."""
    ratio: float
    """Median over photographs."""


def enlarged(name: str, size: tuple[int, int]) -> Image.Image:
    """Enlarges one of scikit-image's photographs, and lays a sensor's noise over it."""
    levels = np.asarray(Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize(size), np.float32)
    noise = np.random.default_rng(0).normal(0, SENSOR_NOISE, levels.shape)
    return Image.fromarray((levels + noise).clip(0, 255).astype(np.uint8))


def measure_preparation(size: tuple[int, int], repeats: int) -> Preparation:
    """Measures photographs of one size, both ways in turns."""
    cutter, settings = ImageCutter(), QLIPConfig()
    side = cutter.native_size
    processor: Any = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    tokens, cuts, clips = [], [], []
    for name in PHOTOGRAPHS:
        image = enlarged(name, size)
        tokens.append(len(cutter.prepare(image, settings).leaves))
        turns = [
            (
                milliseconds(lambda image=image: cutter.prepare(image, settings)),
                milliseconds(lambda image=image: processor.preprocess(image)),
            )
            for _ in range(repeats)
        ]
        cuts.append(min(own for own, _ in turns))
        clips.append(min(other for _, other in turns))
    ratio = statistics.median(own / other for own, other in zip(cuts, clips, strict=True))
    return Preparation(size, statistics.median(tokens), statistics.median(cuts), statistics.median(clips), ratio)


def preparation_table(rows: Sequence[Preparation]) -> str:
    """Formats milliseconds and ratios as Markdown, a line for each row."""
    lines = [table_head(["photograph", "leaves", "QLIP, ms", "CLIP, ms", "QLIP / CLIP"])]
    for row in rows:
        name = f"{row.size[0]} x {row.size[1]}"
        lines.append(table_row([name, f"{row.tokens:.0f}", f"{row.cut:.1f}", f"{row.clip:.1f}", f"{row.ratio:.1f}"]))
    return "\n".join(lines)
