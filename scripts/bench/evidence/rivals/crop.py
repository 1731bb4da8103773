"""Two passes: the first finds the place that the question attends to, the second also gets a crop of it.

As ViCrop (arXiv 2502.17422) does with the attention of one layer: relative to that of a general question, summed over
windows of several sizes. Works on CLIP's view of n x n cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.vision.image_tokens import ImageTokens
from qlip.language_positions import ImageSpan

GENERAL = "What is in the picture?"
"""The question whose attention is divided out: it looks at everything."""
ZOOMS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
"""Sides of the windows that are tried, in multiples of the tower's native size, in the picture's own pixels."""


class Box(NamedTuple):
    """A square of cells of the n x n view."""

    row: int
    col: int
    side: int


@torch.no_grad()
def attend_to_image(model: Any, ids: Tensor, image: ImageTokens, layer: int) -> Tensor:
    """Computes how the last token of a prompt attends to the image's tokens: float (N,), the mean over heads.

    Computed from the layer's own queries and keys, so that the model may run any attention.

    Args:
        model: a `LlavaLlamaForCausalLM`.
        ids: int64 (L,), IMAGE_TOKEN_INDEX once.
        image: encoded and projected, without a size bias.
        layer: number of the layer, from 0.
    """
    attention = model.get_model().layers[layer].self_attn
    with _values(attention) as seen:
        model(input_ids=ids[None].to(model.device), images=[image], logits_to_keep=1)
    query, key = (seen[name].unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for name in ("query", "key"))
    query, key = apply_rotary_pos_emb(query, key, *seen["rotation"])  # (1, heads, T, head size)
    key = repeat_kv(key, attention.num_key_value_groups)
    weights = (query[0, :, -1:] @ key[0].transpose(1, 2) * attention.scaling).softmax(-1).mean(0)[0]
    start = int((ids == IMAGE_TOKEN_INDEX).nonzero())
    return weights[start : start + len(image.features)]


def choose_box(relevance: Tensor, sides: Sequence[int]) -> Box:
    """Chooses the window with the largest contrast to its neighbours.

    For each side the window with the greatest sum; of these the one whose sum exceeds the mean of its direct
    neighbours' (one cell up, down, left, right) by most. The first wins ties.

    Args:
        relevance: float (n, n).
        sides: in cells, each from 1 to n.
    """
    best, box = -torch.inf, Box(0, 0, len(relevance))
    for side in sides:
        sums = F.avg_pool2d(relevance[None], side, stride=1)[0] * side**2
        row, col = divmod(int(sums.argmax()), sums.shape[1])
        beside = [
            sums[r, c]
            for r, c in ((row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1))
            if 0 <= r < sums.shape[0] and 0 <= c < sums.shape[1]
        ]
        lead = float(sums[row, col] - torch.stack(beside).mean()) if beside else 0.0
        if lead > best:
            best, box = lead, Box(row, col, side)
    return box


def window_sides(native_grid: int, native_size: int, longer_side: int) -> list[int]:
    """Computes the sides, in cells, of the windows for a picture: those of `ZOOMS`, rounded, at most n, each once."""
    sides = (round(zoom * native_size / longer_side * native_grid) for zoom in ZOOMS)
    return sorted({min(max(1, side), native_grid) for side in sides})


def join_views(whole: ImageTokens, crop: ImageTokens, box: Box, native_grid: int, raster: bool) -> ImageTokens:
    """Joins the tokens of a picture and of its crop, n * n each.

    Args:
        whole: the picture's.
        crop: the crop's.
        box: where it is.
        native_grid: n.
        raster: give the crop's tokens their places on the picture's raster, instead of counting on.
    """
    if not raster:
        return ImageTokens.join([whole, crop])
    n = native_grid
    along = (torch.arange(n) + 0.5) / n * box.side  # centres of the crop's cells in cells of the picture's view
    rows, cols = (box.row + along).floor(), (box.col + along - 0.5).clamp(0, n - 1)
    own = (n * rows[:, None] + cols[None, :]).flatten()
    positions = torch.cat([torch.arange(n * n, dtype=torch.float32), own])
    features = torch.cat([whole.features, crop.features])
    return ImageTokens(features, ImageSpan(len(features), positions, n * n, None))


@contextmanager
def _values(attention: Any) -> Iterator[dict[str, Any]]:
    """Collects the queries, the keys and the rotation of an attention's next call while the context is open."""
    seen: dict[str, Any] = {}
    handles = [
        attention.q_proj.register_forward_hook(lambda _, __, result: seen.update(query=result)),
        attention.k_proj.register_forward_hook(lambda _, __, result: seen.update(key=result)),
        attention.register_forward_pre_hook(
            lambda _, __, given: seen.update(rotation=given["position_embeddings"]), with_kwargs=True
        ),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
