"""Times of the quadtree, of a recursive one with the same leaves, and of a ViT-L over as many tokens."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

import qlip
from scripts.bench.naive_quadtree import naive_partition, naive_patches
from scripts.bench.pictures import PATCH, PHOTOGRAPHS

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Row:
    """Medians over photographs and repeats for one size."""

    size: int
    tokens: float
    ours: float
    naive: float
    forward: float


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


def vit_large() -> CLIPVisionModel:
    """Builds a CLIP ViT-L/14-336 with random weights, float32 (1.2 GB)."""
    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=PATCH,
    )
    return CLIPVisionModel(config).eval()


def forward_milliseconds(tower: CLIPVisionModel, tokens: int, repeats: int) -> float:
    """Measures the median time of the tower's transformer over `tokens` patch tokens and [CLS]."""
    hidden = torch.randn(1, tokens + 1, tower.config.hidden_size)
    with torch.inference_mode():
        return statistics.median(milliseconds(lambda: tower.encoder(inputs_embeds=hidden)) for _ in range(repeats))


def quadtree_milliseconds(image: Tensor, alpha: float, repeats: int) -> tuple[int, list[float], list[float]]:
    """Counts the tokens and times both quadtrees, in turns after one round to warm up."""

    def ours() -> Tensor:
        leaves = qlip.partition(image, PATCH, alpha=alpha, criterion="gradient", max_tokens=None, coarsest="any")
        return qlip.extract_patches(image, leaves, PATCH)

    def naive() -> Tensor:
        return naive_patches(image, naive_partition(image, PATCH, alpha), PATCH)

    found, expected = ours(), naive()
    if found.shape != expected.shape or not torch.allclose(found, expected, atol=1e-4):
        raise RuntimeError("the two quadtrees give different leaves, so their times cannot be compared")
    times = [(milliseconds(ours), milliseconds(naive)) for _ in range(repeats)]
    return len(found), [first for first, _ in times], [second for _, second in times]


def measure(size: int, tower: CLIPVisionModel, alpha: float, repeats: int) -> Row:
    """Measures one image size."""
    tokens, ours, naive = [], [], []
    for name in PHOTOGRAPHS:
        count, first, second = quadtree_milliseconds(photograph(name, size), alpha, repeats)
        tokens.append(count)
        ours += first
        naive += second
    typical = statistics.median(tokens)
    budget = qlip.QLIPConfig().max_tokens or round(typical)
    forward = forward_milliseconds(tower, min(round(typical), budget), repeats=max(1, repeats // 2))
    return Row(size, typical, statistics.median(ours), statistics.median(naive), forward)
