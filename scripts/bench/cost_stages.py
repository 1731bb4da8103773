"""The time of each stage between a picture and an answer, for one model and several ways to encode it, in turns.

The quadtree's two stages are timed inside the tower's own run, where the encoder calls them; "tower" is the rest of
that run. Projector, prefill and decoding are calls that a client could make; a decoding step is what an answer of
several tokens takes more than one of a single token, shared among the further ones. "total" is a separate run,
without clocks inside, from an image tensor on the CPU to the first token; where the model has no decoder, it is the sum
from partition to projector, since a second run of a large tower takes seconds. Greedy decoding.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor

import qlip.encoder
from llava.mm_utils import process_images
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.vision.image_tokens import ImageTokens
from qlip import Leaves, QLIPConfig
from qlip.quadtree import partition_as
from scripts.bench.cost_models import Subject
from scripts.bench.naive_quadtree import naive_partition, naive_patches

STAGES = ("prepare", "partition", "extraction", "tower", "projector", "prefill", "decode", "total")

PRECISION = 1e-8
"""Precision, as a share of itself, to which a threshold is searched for."""

Result = TypeVar("Result")
Milliseconds = dict[str, float]


@dataclass(frozen=True)
class CostVariant:
    """One way to encode a picture; the row of a table."""

    name: str
    """What the tables call it; unique in a model."""
    settings: Mapping[str, Any] | None = field(default_factory=dict)
    """QLIP settings laid over the model's own; None is CLIP's tower and its downsized input."""
    recursive_on: str | None = None
    """Device on which the recursive peer replaces QLIP's quadtree; None is QLIP's own."""
    same_leaves_as: str | None = None
    """Name of the way whose leaves the recursive peer gives."""
    most_cells: int | None = None
    """Larger grids are left out; None for no bound."""


@dataclass(frozen=True)
class Row:
    """What one way costs at one size of picture."""

    model: str
    size: int
    """Side of the square picture in pixels."""
    way: str
    tokens: float
    """Visual tokens, median over runs."""
    runs: dict[str, list[float]]
    """Milliseconds by stage, one entry per run; stages that a way or a model lacks are absent."""

    def median(self, *stages: str) -> float | None:
        """Sums the milliseconds of stages; None where one is absent."""
        if any(stage not in self.runs for stage in stages):
            return None
        return sum(statistics.median(self.runs[stage]) for stage in stages)

    def to_dict(self) -> dict[str, Any]:
        """Builds a dict for JSON."""
        medians = {stage: self.median(stage) for stage in STAGES if stage in self.runs}
        return {
            "model": self.model, "size": self.size, "way": self.way, "tokens": self.tokens, "median_ms": medians,
            "runs_ms": self.runs,
        }  # fmt: skip


def timed(work: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """Runs `work`; its result, and the milliseconds until all that it started on the device is done."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    wait(device)
    start = time.perf_counter()
    result = work()
    wait(device)
    return result, (time.perf_counter() - start) * 1000


def measure(subject: Subject, ways: Sequence[CostVariant], size: int, repeats: int, new_tokens: int) -> list[Row]:
    """Times all ways at one size in turns, each turn on another picture, after a turn to warm up.

    Args:
        subject: the model.
        ways: ways to encode a picture, in the order of the rows.
        size: side of the pictures in pixels, a multiple of the patch size.
        repeats: turns that count.
        new_tokens: tokens that decoding is timed over, after the first.
    """
    found: dict[str, list[tuple[int, Milliseconds]]] = {way.name: [] for way in ways}
    for turn in range(-1, repeats):
        picture = subject.picture(size, max(turn, 0))
        for way in ways:
            sample = run_once(subject, way, picture, new_tokens)
            if turn >= 0:
                found[way.name].append(sample)
    return [
        Row(
            subject.name,
            size,
            name,
            statistics.median(tokens for tokens, _ in samples),
            {stage: [times[stage] for _, times in samples] for stage in STAGES if stage in samples[0][1]},
        )
        for name, samples in found.items()
    ]


@torch.inference_mode()
def run_once(subject: Subject, way: CostVariant, picture: Image.Image, new_tokens: int) -> tuple[int, Milliseconds]:
    """Measures the visual tokens of one picture and the time of every stage."""
    device, model = subject.model.device, subject.model
    settings = None if way.settings is None else replace(subject.own, **way.settings)
    tower = subject.use_tower(settings)
    pixels, prepare = timed(lambda: process_images([picture], tower.image_processor, model.config)[0], device)
    image, times = pixels.to(device), {"prepare": prepare}
    if way.recursive_on is None:
        quadtree: AbstractContextManager[None] = nullcontext()
    else:
        settings = matching(settings, image, tower)
        subject.use_tower(settings)
        quadtree = recursive_quadtree(settings.alpha, way.recursive_on)
    with quadtree:
        if way.recursive_on is not None and not subject.decodes:  # all that follows is as with our quadtree
            count, laps = time_quadtree(tower, image)
            return count, times | laps
        tokens, laps = time_tower(tower, image)
        features, laps["projector"] = timed(lambda: model.get_model().mm_projector(tokens.features), device)
        times |= laps
        if subject.decodes:
            times |= time_decoder(subject, tokens.with_features(features), new_tokens)
            _, times["total"] = timed(lambda: answer(subject, pixels, 1), device)
        else:
            times["total"] = sum(laps.values())
    return len(features), times


def time_tower(tower: VisionTower, image: Tensor) -> tuple[ImageTokens, Milliseconds]:
    """Encodes an image (C, H, W) on the tower's device; its tokens, and the times of the quadtree and the rest."""
    with quadtree_laps(image.device) as laps:
        (tokens,), whole = timed(lambda: tower.encode_tokens([image]), image.device)
    return tokens, {**laps, "tower": whole - sum(laps.values())}


def time_quadtree(tower: VisionTower, image: Tensor) -> tuple[int, Milliseconds]:
    """Measures the number of leaves and the time of the quadtree's two stages, without running the tower."""
    with quadtree_laps(image.device) as laps:
        leaves = tower.partition(image)
        qlip.encoder.extract_patches(image, leaves, tower.config.patch_size)
    return len(leaves), laps


@contextmanager
def quadtree_laps(device: torch.device) -> Iterator[Milliseconds]:
    """Enters a context that times the encoder's calls of partition and extraction, from within its own run."""
    laps: Milliseconds = {}

    def clocked(stage: str, work: Callable[..., Result]) -> Callable[..., Result]:
        def run(*args: Any) -> Result:
            result, lap = timed(lambda: work(*args), device)
            laps[stage] = laps.get(stage, 0.0) + lap
            return result

        return run

    with patch.multiple(
        qlip.encoder,
        partition_as=clocked("partition", qlip.encoder.partition_as),
        extract_patches=clocked("extraction", qlip.encoder.extract_patches),
    ):
        yield laps


def time_decoder(subject: Subject, tokens: ImageTokens, new_tokens: int) -> Milliseconds:
    """Measures the time to the first token of an answer about an encoded image, and of each of `new_tokens` more."""
    device = subject.model.device
    _, prefill = timed(lambda: answer(subject, tokens, 1), device)
    _, longer = timed(lambda: answer(subject, tokens, 1 + new_tokens), device)
    return {"prefill": prefill, "decode": (longer - prefill) / new_tokens}


def answer(subject: Subject, image: Tensor | ImageTokens, length: int) -> Tensor:
    """Generates int64 (1, length): the likeliest tokens, and never an end."""
    return subject.model.generate(
        subject.prompt, images=[image], do_sample=False, min_new_tokens=length, max_new_tokens=length, pad_token_id=0
    )


def matching(settings: QLIPConfig | None, image: Tensor, tower: VisionTower) -> QLIPConfig:
    """Finds settings that cut an image by a threshold alone as `settings` do with a budget.

    The recursive peer has no budget. Where blocks tie at the budget's end, the largest tree within it.

    Raises:
        ValueError: settings that the recursive peer does not know.
    """
    known = ("gradient", "aligned", "any", "score")
    if settings is None or known != (settings.criterion, settings.layout, settings.coarsest, settings.split_order):
        raise ValueError(
            f"the settings are {settings}; the recursive quadtree knows criterion 'gradient', layout 'aligned',"
            " coarsest 'any' and split_order 'score' only"
        )

    def cut(alpha: float) -> int:
        unbounded = replace(settings, alpha=alpha, max_tokens=None)
        return len(partition_as(unbounded, image, tower.config.patch_size, tower.num_patches_per_side))

    wanted = len(partition_as(settings, image, tower.config.patch_size, tower.num_patches_per_side))
    low = high = settings.alpha
    while (count := cut(high)) > wanted:
        low, high = high, 2 * high + 1
    while count != wanted and high - low > PRECISION * high:
        middle = (low + high) / 2
        if (leaves := cut(middle)) > wanted:
            low = middle
        else:
            high, count = middle, leaves
    return replace(settings, alpha=high, max_tokens=None)


@contextmanager
def recursive_quadtree(alpha: float, device: str) -> Iterator[None]:
    """Enters a context in which QLIP's encoder uses the recursive peer, on `device`, in the paper's geometry."""

    def cut(_: QLIPConfig, image: Tensor, patch_size: int, __: int) -> Leaves:
        boxes = naive_partition(image.to(device), patch_size, alpha)
        grid = (image.shape[1] // patch_size, image.shape[2] // patch_size)
        return Leaves(torch.tensor(boxes, dtype=torch.int64), grid)

    def resample(image: Tensor, leaves: Leaves, patch_size: int, geometry: str = "grid") -> Tensor:
        if geometry != "grid":
            raise ValueError(f"the geometry is {geometry!r}; the recursive quadtree has 'grid' only")
        boxes = [(row, col, size) for row, col, size in leaves.boxes.tolist()]
        return naive_patches(image.to(device), boxes, patch_size).to(image.device)

    with patch.multiple(qlip.encoder, partition_as=cut, extract_patches=resample):
        yield
