"""Other ways from a picture to few visual tokens, without training: prune by [CLS] attention, merge by similarity.

Pure functions on the layers of a CLIP tower that is read through `QLIPVisionModel`. All get the uniform grid of the
image that they are given, so that they, like the quadtree, can use fine detail; all give places of what they keep, so
that they can have the same positions in the language model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qlip import Leaves, QLIPVisionModel, extract_patches, interpolate_positions
from qlip.quadtree import find_grid
from scripts.bench.flops import TowerCost

NEIGHBOURS = 32
"""Tokens that PruMerge merges into each that it keeps, as its released code does."""


@dataclass(frozen=True)
class Kept:
    """What is left of one picture's uniform grid, in raster order."""

    features: Tensor
    """(K, D), the selected hidden layer."""
    centres: Tensor
    """float (K, 2): mean (row, col), in cells, of the cells that each token represents."""
    grid: tuple[int, int]
    """(rows, cols) of the uniform grid."""
    flops: int
    """Of the tower and of the products of matrices that the reduction adds."""


def prune_by_cls(vision: QLIPVisionModel, image: Tensor, keep: int, contextual: float = 10 / 64) -> Kept:
    """Keeps the patches that [CLS] attends to most in the selected layer, and merges the rest into a few.

    As VisionZip (arXiv 2412.04467) does: a share of `contextual` tokens is spread evenly over what [CLS] leaves, and
    takes up, as a mean, the others whose keys are most alike. With `contextual` 0 the rest is dropped.

    Args:
        vision: the tower.
        image: float (C, H, W), normalised.
        keep: K, number of tokens to keep.
        contextual: share of K that is merged.
    """
    patches, attention, keys, grid = _run_uniform(vision, image)
    keep = min(keep, len(patches))
    merged = round(keep * contextual)
    order = attention.argsort(descending=True)
    dominant, rest = order[: keep - merged], order[keep - merged :].sort().values
    likeness, places = F.normalize(keys, dim=-1), Leaves.uniform(grid).centres
    chosen, features = [dominant], [patches[dominant]]
    if merged:
        at = torch.linspace(0, len(rest) - 1, merged).round().long()
        targets = rest[at]
        nearest = (likeness[rest] @ likeness[targets].T).argmax(1)
        nearest[at] = torch.arange(merged)
        sums = torch.zeros(merged, patches.shape[1]).index_add_(0, nearest, patches[rest])
        features.append(sums / nearest.bincount(minlength=merged)[:, None])
        chosen.append(targets)
    raster = torch.cat(chosen).argsort()
    flops = TowerCost.of(vision).run(len(patches)) + 2 * len(rest) * merged * keys.shape[1]
    return Kept(torch.cat(features)[raster], places[torch.cat(chosen)[raster]], grid, flops)


def prune_outliers(vision: QLIPVisionModel, image: Tensor, neighbours: int = NEIGHBOURS) -> Kept:
    """Keeps the patches that [CLS] attends to far more than to most, however many they are, and merges into each.

    As PruMerge (arXiv 2403.15388) does: kept are outliers, those above the third quartile by more than 1.5 times the
    distance of the quartiles. To each is added the sum of the tokens with the most similar keys, weighted by [CLS]'s
    attention to them; the paper's formula has this sum alone, its released code adds it to the token, as here. The code
    also appends one token of all that is left, which has no place in the picture; that one is left out.

    Args:
        vision: the tower.
        image: float (C, H, W), normalised.
        neighbours: tokens that are merged into each.
    """
    patches, attention, keys, grid = _run_uniform(vision, image)
    low, high = attention.quantile(torch.tensor([0.25, 0.75], device=attention.device))
    chosen = (attention > high + 1.5 * (high - low)).nonzero()[:, 0]
    if not len(chosen):
        chosen = attention.argmax()[None]
    unit = F.normalize(keys, dim=-1)
    likeness = unit[chosen] @ unit.T
    likeness[torch.arange(len(chosen)), chosen] = -torch.inf  # not into itself
    nearest = likeness.topk(min(neighbours, len(patches) - 1)).indices
    features = patches[chosen] + (patches[nearest] * attention[nearest][..., None]).sum(1)
    flops = TowerCost.of(vision).run(len(patches)) + 2 * len(chosen) * len(patches) * keys.shape[1]
    return Kept(features, Leaves.uniform(grid).centres[chosen], grid, flops)


def average_leaves(vision: QLIPVisionModel, image: Tensor, leaves: Leaves) -> Kept:
    """Averages the features of the uniform grid over the leaves of a tree: merging after the tower, by place.

    Args:
        vision: the tower.
        image: float (C, H, W), normalised.
        leaves: a tree of the image that covers every cell.
    """
    patches, _, _, grid = _run_uniform(vision, image)
    owner = leaves.token_map().flatten().to(patches.device)
    sums = patches.new_zeros(len(leaves), patches.shape[1]).index_add_(0, owner, patches)
    features = sums / owner.bincount(minlength=len(leaves))[:, None]
    return Kept(features, leaves.centres, grid, TowerCost.of(vision).run(len(patches)))


def merge_similar(vision: QLIPVisionModel, image: Tensor, keep: int) -> Kept:
    """Merges similar tokens in every layer up to the selected one, by the same ratio each, until `keep` are left.

    As ToMe (arXiv 2210.09461) does: between attention and MLP tokens are dealt into two sets, the pairs with the most
    similar keys are merged by their mean, weighted by size, and attention is proportional to size. [CLS] stays.

    Args:
        vision: the tower.
        image: float (C, H, W), normalised.
        keep: K; at most half of the tokens can go in each layer.
    """
    hidden, grid = _embed_uniform(vision, image)
    layers = vision.encoder.layers[: vision.select_layer]
    start = len(hidden) - 1
    cost = TowerCost.of(vision)
    flops = cost.embed(start)
    size = torch.ones(len(hidden), 1)
    centres = F.pad(Leaves.uniform(grid).centres, (0, 0, 1, 0))  # a row for [CLS]
    for number, layer in enumerate(layers, start=1):
        attended, _, keys = _run_attention(layer, hidden, size)
        tokens = len(attended)
        left = max(keep, round(start * (keep / start) ** (number / len(layers))))
        hidden, size, centres = _merge(attended, size, centres, keys, len(attended) - 1 - left)
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
        flops += cost.layer.run(tokens, len(hidden)) + 2 * (tokens // 2) * (tokens - tokens // 2) * keys.shape[1]
    raster = (centres[1:, 0].floor() * grid[1] + centres[1:, 1]).argsort()
    return Kept(hidden[1:][raster], centres[1:][raster], grid, flops)


def raster_places(kept: Kept, native_grid: int) -> Tensor:
    """Computes float32 (K,): places on the native raster, by the rule of `qlip.raster_positions`."""
    rows, cols = kept.grid
    i = ((kept.centres[:, 0] + 0.5) / rows * native_grid).floor().clamp(max=native_grid - 1)
    j = (kept.centres[:, 1] + 0.5) / cols * native_grid - 0.5
    return native_grid * i + j.clamp(0, native_grid - 1)


def _merge(hidden: Tensor, size: Tensor, centres: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merges `count` tokens of the even places into their most similar ones of the odd places; [CLS], at 0, stays."""
    likeness = F.normalize(keys, dim=-1)
    even, odd = torch.arange(0, len(hidden), 2), torch.arange(1, len(hidden), 2)
    scores = likeness[even] @ likeness[odd].T
    scores[0] = -torch.inf
    best, partner = scores.max(1)
    count = min(count, len(even) - 1)
    source = best.argsort(descending=True)[:count]
    target = odd[partner[source]]

    def merged(values: Tensor) -> Tensor:
        weighted = values * size
        return weighted.index_add(0, target, weighted[even[source]])

    new_size = size.index_add(0, target, size[even[source]])
    stays = torch.ones(len(hidden), dtype=torch.bool)
    stays[even[source]] = False
    return (merged(hidden) / new_size)[stays], new_size[stays], (merged(centres) / new_size)[stays]


def _embed_uniform(vision: QLIPVisionModel, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Embeds the input sequence (1 + N, D) of the uniform grid, [CLS] first, and the grid."""
    patch, embeddings = vision.config.patch_size, vision.embeddings
    grid = find_grid(image, patch)
    leaves = Leaves.uniform(grid)
    flat = extract_patches(image, leaves, patch).flatten(1)
    tokens = F.linear(flat, embeddings.patch_embedding.weight.flatten(1))
    positions = torch.cat([vision.cls_position, interpolate_positions(vision.position_table, leaves)])
    return vision.pre_layrnorm(torch.cat([embeddings.class_embedding[None], tokens]) + positions), grid


def _run_uniform(vision: QLIPVisionModel, image: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    """Runs the tower over the uniform grid of N cells, as far as the selected layer.

    Returns:
        Features (N, D), [CLS]'s attention to each (N,), the mean over heads, keys (N, D), both of the last layer that
        ran, and the grid.
    """
    hidden, grid = _embed_uniform(vision, image)
    for layer in vision.encoder.layers[: vision.select_layer]:
        hidden, weights, keys = _run_layer(layer, hidden, None)
    return hidden[1:], weights[:, 0, 1:].mean(0), keys[1:], grid


def _run_layer(layer: nn.Module, hidden: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Runs one layer over (T, D): its output, attention (heads, T, T) and keys (T, D)."""
    attended, weights, keys = _run_attention(layer, hidden, size)
    return attended + layer.mlp(layer.layer_norm2(attended)), weights, keys


def _run_attention(layer: nn.Module, hidden: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the layer's attention block with its residual; the weights (heads, T, T) and the keys (T, D)."""
    attention = layer.self_attn
    normed = layer.layer_norm1(hidden)
    keys = attention.k_proj(normed)
    query, key, value = (
        x.unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)
        for x in (attention.q_proj(normed), keys, attention.v_proj(normed))
    )  # (heads, T, D / heads)
    logits = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
    if size is not None:
        logits = logits + size.squeeze(-1).log()
    weights = logits.softmax(-1)
    mixed = (weights @ value).transpose(0, 1).flatten(1)
    return hidden + attention.out_proj(mixed), weights, keys
