"""Times of the whole preparation of a photograph, by the default settings and by CLIP's image processor."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import skimage.data
from PIL import Image
from transformers import CLIPImageProcessorPil

from qlip import QLIPConfig, kernels
from qlip.cutting import ImageCutter
from scripts.bench.pictures import PHOTOGRAPHS
from scripts.bench.quadtree_times import milliseconds, using
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
    compiled: float | None
    """The same, resized as well, by numba's loops; None where it is not installed."""
    clip: float
    """`CLIPImageProcessorPil`: resized, cropped and normalised."""
    ratio: float
    """`cut` over `clip`, median over photographs."""
    compiled_ratio: float | None
    """`compiled` over `clip`, median over photographs."""


def enlarged(name: str, size: tuple[int, int]) -> Image.Image:
    """Enlarges one of scikit-image's photographs, and lays a sensor's noise over it."""
    levels = np.asarray(Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize(size), np.float32)
    noise = np.random.default_rng(0).normal(0, SENSOR_NOISE, levels.shape)
    return Image.fromarray((levels + noise).clip(0, 255).astype(np.uint8))


def measure_preparation(size: tuple[int, int], repeats: int) -> Preparation:
    """Measures photographs of one size, all ways in turns."""
    cutter, settings = ImageCutter(), QLIPConfig()
    side = cutter.native_size
    processor: Any = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    loops = kernels.load_loops()

    def prepare(image: Image.Image, loops: ModuleType | None) -> float:
        with using(loops):
            return milliseconds(lambda: cutter.prepare(image, settings))

    tokens: list[int] = []
    fastest: list[tuple[float, ...]] = []
    for name in PHOTOGRAPHS:
        image = enlarged(name, size)
        prepare(image, loops)  # compiles
        tokens.append(len(cutter.prepare(image, settings).leaves))
        ways = (
            lambda image=image: prepare(image, None),
            lambda image=image: milliseconds(lambda: processor.preprocess(image)),
            lambda image=image: prepare(image, loops),
        )
        turns = [[way() for way in ways] for _ in range(repeats)]
        fastest.append(tuple(map(min, zip(*turns, strict=True))))
    cut, clip, compiled = map(statistics.median, zip(*fastest, strict=True))
    ratios = [statistics.median(turn[way] / turn[1] for turn in fastest) for way in (0, 2)]
    with_loops = (compiled, ratios[1]) if loops else (None, None)
    return Preparation(size, statistics.median(tokens), cut, with_loops[0], clip, ratios[0], with_loops[1])


def preparation_table(rows: Sequence[Preparation]) -> str:
    """Formats milliseconds and ratios as Markdown, a line for each row."""
    lines = [
        table_head(["photograph", "leaves", "QLIP, ms", "by numba, ms", "CLIP, ms", "QLIP / CLIP", "by numba / CLIP"])
    ]
    for row in rows:
        name = f"{row.size[0]} x {row.size[1]}"
        values = (row.cut, row.compiled, row.clip, row.ratio, row.compiled_ratio)
        times = ["-" if value is None else f"{value:.1f}" for value in values]
        lines.append(table_row([name, f"{row.tokens:.0f}", *times]))
    return "\n".join(lines)
