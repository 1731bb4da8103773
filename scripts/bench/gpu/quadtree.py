"""Times the quadtree on a GPU: against a recursive one with the same leaves, and against ViT-L/14-336 over the leaves.

Partition and patches of a photograph that is on the device already, float32; the tower in float16.
"""

from __future__ import annotations

import statistics
from functools import partial

import torch
from torch import Tensor
from transformers import CLIPVisionModel

import qlip
from qlip import QLIPConfig
from qlip.quadtree import partition_as
from scripts.bench.evidence.answering.trees import STRUCTURE
from scripts.bench.gpu.models import build_tower, dtype_on
from scripts.bench.gpu.parts import Row, report_each
from scripts.bench.gpu.timing import count_launches, interleave, median_ratio
from scripts.bench.naive_quadtree import naive_partition, naive_patches
from scripts.bench.pictures import PATCH
from scripts.bench.quadtree_times import photograph

ALPHA = 0.1
"""The published benchmark's threshold for gradients."""
SIZES = (336, 672, 896, 1792)
SHARE_SIZES = (672, 896, 1792)
BUDGET = 1152
NATIVE_GRID = 24


def cut(image: Tensor, settings: QLIPConfig) -> Tensor:
    """Cuts an image into its leaves' patches (N, C, P, P)."""
    return qlip.extract_patches(image, partition_as(settings, image, PATCH, NATIVE_GRID), PATCH)


def cut_recursively(image: Tensor) -> Tensor:
    """Cuts the same by the recursive quadtree, for gradients without a budget."""
    return naive_patches(image, naive_partition(image, PATCH, ALPHA), PATCH)


@torch.inference_mode()
def against_recursion(size: int, device: str, turns: int) -> Row:
    """Times ours and the recursive one, on the device and on the CPU, in turns."""
    here = photograph("astronaut", size)
    there = here.to(device)
    settings = QLIPConfig.paper(alpha=ALPHA)
    found, expected = cut(there, settings), cut_recursively(there)  # both are warm now
    if found.shape != expected.shape or not torch.allclose(found, expected, atol=1e-3):
        raise RuntimeError("the two quadtrees give different leaves, so their times cannot be compared")
    ways = {
        "ours": partial(cut, there, settings),
        "recursive": partial(cut_recursively, there),
        "recursive on the CPU": partial(cut_recursively, here),
    }
    times = interleave(ways, device, turns, warm_up=0)
    return {
        "size": size,
        "leaves": len(found),
        "turns": turns,
        "ms": {name: statistics.median(values) for name, values in times.items()},
        "ratio": median_ratio(times["recursive"], times["ours"]),
        "ratio_cpu": median_ratio(times["recursive on the CPU"], times["ours"]),
    }


def spend_by(criterion: str) -> QLIPConfig:
    """Builds settings that spend the whole default budget by a criterion, "structure" with its former window."""
    former = STRUCTURE if criterion == "structure" else {"criterion": criterion}
    return QLIPConfig(**former, alpha=0.0, max_tokens=BUDGET)


@torch.inference_mode()
def against_tower(size: int, criterion: str, tower: CLIPVisionModel, device: str, turns: int) -> Row:
    """Times ours at the default budget, all of it spent, and the tower's layers over as many tokens and [CLS]."""
    image = photograph("astronaut", size).to(device)
    settings = spend_by(criterion)
    leaves = len(cut(image, settings))
    hidden = torch.randn(1, leaves + 1, tower.config.hidden_size, device=device, dtype=dtype_on(device))
    ours = partial(cut, image, settings)
    times = interleave({"ours": ours, "tower": partial(tower.encoder, inputs_embeds=hidden)}, device, turns)
    return {
        "size": size,
        "criterion": criterion,
        "leaves": leaves,
        "turns": turns,
        "ms": {name: statistics.median(values) for name, values in times.items()},
        "share": median_ratio(times["ours"], times["tower"]),
    }


@torch.inference_mode()
def launches(size: int, criterion: str, device: str) -> Row:
    """Counts what one image makes the GPU do, and the CPU wait for."""
    image = photograph("astronaut", size).to(device)
    settings = spend_by(criterion)
    return {"size": size, "criterion": criterion, **count_launches(partial(cut, image, settings), device)}


def run(model: str, device: str, turns: int) -> int:
    """Reports a row for each size, criterion and peer; returns the number that failed."""
    tower = build_tower(model, device)
    cases = [(size, criterion) for size in SHARE_SIZES for criterion in ("objects", "structure", "gradient")]
    shares = [
        (f"share, {size} px, {criterion}", partial(against_tower, size, criterion, tower, device, 7 * turns))
        for size, criterion in cases
    ]
    ratios = [(f"recursive, {size} px", partial(against_recursion, size, device, turns)) for size in SIZES]
    counts = [
        (f"launches, {size} px, {criterion}", partial(launches, size, criterion, device)) for size, criterion in cases
    ]
    return report_each([*shares, *ratios, *counts])
