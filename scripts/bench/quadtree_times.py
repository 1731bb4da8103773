"""Times of the quadtree, of a recursive one with the same leaves, and of copying."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor

import qlip
from qlip import Leaves, QLIPConfig, kernels
from qlip.quadtree import partition_as
from qlip.roots import allowed_leaf
from scripts.bench.evidence.answering.trees import IN_GRID, STRUCTURE
from scripts.bench.naive_quadtree import (
    Box,
    ObjectsScore,
    gradient_score,
    naive_partition,
    naive_patches,
    structure_score,
)
from scripts.bench.pictures import PATCH, PHOTOGRAPHS

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
NATIVE = 24  # cells per side of CLIP-L's grid

RULES = {
    "objects": QLIPConfig(**IN_GRID),
    "structure": QLIPConfig(**{**IN_GRID, **STRUCTURE}),
    "gradient": QLIPConfig.paper(),
}
"""Criterion -> settings for pixels as they are: the default rule and budget, by both criteria, and the paper's."""

SCORES = {"objects": ObjectsScore, "structure": structure_score, "gradient": gradient_score}
"""Scores of the recursive quadtree; a class is made for each image."""


@dataclass(frozen=True)
class Row:
    """Milliseconds for one criterion and size: medians over photographs of each one's fastest turn."""

    criterion: str
    size: int
    """Side of the image in pixels."""
    tokens: float
    partition: float
    patches: float
    copy: float
    """Copying the image once and the patches once."""
    compiled: float | None
    """Partition and patches by numba's loops; None where it is not installed."""
    naive: float
    """Partition and patches of the recursive quadtree."""
    slowdown: float
    """Partition and patches while other processes keep all cores busy, by those without: both medians of all turns."""

    @property
    def ours(self) -> float:
        """Partition and patches."""
        return self.partition + self.patches


def photograph(name: str, size: int) -> Tensor:
    """Loads a photograph as CLIP takes it: float32 (3, size, size), normalised."""
    picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize((size, size))
    values = (np.asarray(picture, dtype=np.float32) / 255 - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


def milliseconds(work: Callable[[], object]) -> float:
    """Times a call."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def using(loops: ModuleType | None) -> AbstractContextManager[object]:
    """Cuts images by these compiled loops, or by numpy."""
    return mock.patch.object(kernels, "load_loops", lambda: loops)


def cut(image: Tensor, criterion: str, loops: ModuleType | None = None) -> tuple[Leaves, Tensor, tuple[float, float]]:
    """Finds an image's leaves and patches, and times both; by numpy unless compiled loops are given."""
    with using(loops):
        start = time.perf_counter()
        leaves = partition_as(RULES[criterion], image, PATCH, NATIVE)
        middle = time.perf_counter()
        patches = qlip.extract_patches(image, leaves, PATCH)
        return leaves, patches, (1000 * (middle - start), 1000 * (time.perf_counter() - middle))


def naive_cut(image: Tensor, criterion: str) -> tuple[list[Box], Tensor]:
    """Finds the same leaves and patches by recursion."""
    rule, side = RULES[criterion], image.shape[1] // PATCH
    bound = allowed_leaf(rule, (side, side), NATIVE)
    score = SCORES[criterion]
    score = score() if isinstance(score, type) else score
    leaves = naive_partition(image, PATCH, rule.alpha, score, bound, rule.max_tokens, rule.split_order)
    return leaves, naive_patches(image, leaves, PATCH)


def check_equal(image: Tensor, criterion: str) -> tuple[int, Tensor]:
    """Cuts an image in all ways, which also warms up and compiles; counts its leaves.

    Raises:
        RuntimeError: the leaves or patches differ.
    """
    boxes, expected = naive_cut(image, criterion)
    for loops in {None, kernels.load_loops()}:
        leaves, patches, _ = cut(image, criterion, loops)
        if list(map(tuple, leaves.boxes.tolist())) != boxes or not torch.allclose(patches, expected, atol=1e-4):
            raise RuntimeError("the quadtrees give different leaves, so their times cannot be compared")
    return len(leaves), patches


def measure(criterion: str, size: int, repeats: int, busy: Callable[[], AbstractContextManager[None]]) -> Row:
    """Measures one criterion at one image size, all ways in turns on each photograph.

    Args:
        criterion: of `RULES`.
        size: side of the image in pixels.
        repeats: turns on each photograph.
        busy: keeps all cores busy while its context is open.
    """
    tokens: list[int] = []
    fastest: dict[str, list[float]] = {name: [] for name in ("partition", "patches", "copy", "naive", "compiled")}
    quiet: list[float] = []
    loaded: list[float] = []
    for name in PHOTOGRAPHS:
        image = photograph(name, size)
        count, patches = check_equal(image, criterion)
        tokens.append(count)
        turns = [take_turn(image, patches, criterion) for _ in range(repeats)]
        for way, laps in fastest.items():
            laps.append(min(turn[way] for turn in turns))
        quiet += [turn["partition"] + turn["patches"] for turn in turns]
        with busy():
            loaded += [sum(cut(image, criterion)[2]) for _ in range(repeats)]
    slowdown = statistics.median(loaded) / statistics.median(quiet)
    medians: dict[str, Any] = {way: statistics.median(laps) for way, laps in fastest.items()}
    medians["compiled"] = medians["compiled"] if kernels.load_loops() else None
    return Row(criterion, size, statistics.median(tokens), **medians, slowdown=slowdown)


def take_turn(image: Tensor, patches: Tensor, criterion: str) -> dict[str, float]:
    """Measures copying, ours (by numba too, or infinity) and the recursive quadtree once, in milliseconds."""
    copy = milliseconds(lambda: (image.clone(), patches.clone()))
    partition, extraction = cut(image, criterion)[2]
    loops = kernels.load_loops()
    compiled = sum(cut(image, criterion, loops)[2]) if loops else math.inf
    naive = milliseconds(lambda: naive_cut(image, criterion))
    return {"compiled": compiled, "copy": copy, "partition": partition, "patches": extraction, "naive": naive}


def table(rows: Sequence[Row]) -> str:
    """Formats milliseconds and ratios as Markdown, a line for each row."""
    lines = [
        "| image | leaves | partition, ms | patches, ms | copy, ms | QLIP / copy | recursive, ms | recursive / QLIP"
        " | busy / quiet | by numba, ms | / copy | recursive / it |",
        "|---" * 12 + "|",
    ]
    for row in rows:
        ratios = f"{row.ours / row.copy:.1f} | {row.naive:.0f} | {row.naive / row.ours:.1f} | {row.slowdown:.1f}"
        compiled = "- | - | -"
        if row.compiled is not None:
            compiled = f"{row.compiled:.1f} | {row.compiled / row.copy:.1f} | {row.naive / row.compiled:.1f}"
        lines.append(
            f"| {row.size} px | {row.tokens:.0f} | {row.partition:.1f} | {row.patches:.1f} | {row.copy:.1f}"
            f" | {ratios} | {compiled} |"
        )
    return "\n".join(lines)
