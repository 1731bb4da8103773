"""Times the quadtree: `python -m scripts.bench.quadtree [--sizes 336 672 896 1792] [--repeats 5] [--alpha 0.1]`.

For every size and photograph (scikit-image's, resized) it measures partition + extract_patches, ours and the naive
peer's, in turns so that both meet the same state of the machine, and the forward pass of a ViT-L/14 (random weights)
over as many tokens as ours gave, though no more than the default budget. Everything runs on the CPU.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

import qlip
from llava.command import OneLineParser, integer, parse_and_run, real
from scripts.bench.naive_quadtree import naive_partition, naive_patches

PATCH = 14
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
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
    """float32 (3, size, size), normalised as CLIP takes it."""
    picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize((size, size))
    values = (np.asarray(picture, dtype=np.float32) / 255 - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def vit_large() -> CLIPVisionModel:
    """CLIP ViT-L/14-336 with random weights, float32 (1.2 GB)."""
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
    """Median time of the tower's transformer over `tokens` patch tokens and [CLS]."""
    hidden = torch.randn(1, tokens + 1, tower.config.hidden_size)
    with torch.inference_mode():
        return statistics.median(milliseconds(lambda: tower.encoder(inputs_embeds=hidden)) for _ in range(repeats))


def quadtree_milliseconds(image: Tensor, alpha: float, repeats: int) -> tuple[int, list[float], list[float]]:
    """Tokens, and the times of ours and of the naive peer, taken in turns after one round to warm up."""

    def ours() -> Tensor:
        leaves = qlip.partition(image, PATCH, alpha=alpha, criterion="gradient", max_tokens=None, coarsest="any")
        return qlip.extract_patches(image, leaves, PATCH)

    def naive() -> Tensor:
        return naive_patches(image, naive_partition(image, PATCH, alpha), PATCH)

    found, expected = ours(), naive()
    if found.shape != expected.shape or not torch.allclose(found, expected, atol=1e-4):
        raise RuntimeError("ours and the naive peer disagree, so their times mean nothing")
    times = [(milliseconds(ours), milliseconds(naive)) for _ in range(repeats)]
    return len(found), [first for first, _ in times], [second for _, second in times]


def measure(size: int, tower: CLIPVisionModel, alpha: float, repeats: int) -> Row:
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


def print_table(rows: list[Row], native_forward: float) -> None:
    print("  px   cells  tokens  ours ms  naive ms  ratio  ViT-L ms  share of ViT-L  share of ViT-L at 577")
    for row in rows:
        print(
            f"{row.size:4d}  {(row.size // PATCH) ** 2:6d}  {row.tokens:6.0f}  {row.ours:7.2f}  {row.naive:8.1f}"
            f"  {row.naive / row.ours:5.1f}  {row.forward:8.0f}  {row.ours / row.forward:13.2%}"
            f"  {row.ours / native_forward:20.2%}"
        )


def multiple_of_patch(text: str) -> int:
    size = integer(PATCH)(text)
    if size % PATCH:
        raise argparse.ArgumentTypeError(f"{size} is no positive multiple of {PATCH} pixels")
    return size


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = OneLineParser(
        prog="quadtree", description="Times partition + extract_patches against a naive peer and a ViT-L."
    )
    parser.add_argument("--sizes", type=multiple_of_patch, nargs="+", default=[336, 672, 896, 1792], help="pixels")
    parser.add_argument("--repeats", type=integer(), default=5, help="measurements per photograph")
    parser.add_argument("--alpha", type=real(infinite=True), default=0.1, help="split threshold")
    parser.add_argument("--threads", type=integer(), default=torch.get_num_threads(), help="threads of torch")
    return parse_and_run(parser, run, argv)


def run(args: argparse.Namespace) -> None:
    """Measures and prints a table."""
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, {os.cpu_count()} cores, {platform.machine()}")
    print(f"gradient, alpha {args.alpha}; medians over {', '.join(PHOTOGRAPHS)} x {args.repeats}")
    tower = vit_large()
    native_forward = forward_milliseconds(tower, 576, repeats=args.repeats)
    rows = [measure(size, tower, args.alpha, args.repeats) for size in args.sizes]
    print_table(rows, native_forward)


if __name__ == "__main__":
    sys.exit(main())
