"""Which blocks of an image split: those whose scores reach alpha, the first in order while a budget lasts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qlip.config import SplitOrder


def choose_splits(
    scores: list[Tensor], extent: tuple[int, int], alpha: float, most: int | None, order: SplitOrder
) -> list[np.ndarray]:
    """Chooses the blocks that split: bool, shaped like `scores`, for levels 1 and up. Waits for a GPU once.

    Blocks that extend beyond `extent` (rows, cols) always split; of the others at most `most`, the first in `order`.
    The scores of T tiles of one size may be stacked, (T, rows, cols) each: `extent` is a tile's, `most` is of all
    together.
    """
    top = len(scores) - 1
    effective: list[np.ndarray] = []  # from the top level down
    forced: list[np.ndarray] = []
    for k, score in zip(range(top, 0, -1), _to_arrays(scores[:0:-1]), strict=True):
        if effective:
            score = np.minimum(score, upsample(effective[-1], 2, score.shape))
        forced.append(np.broadcast_to(_sticks_out(score.shape[-2:], k, extent), score.shape))
        effective.append(np.where(forced[-1], np.inf, score))
    threshold = _cast_threshold(alpha)
    wanted = [score >= threshold for score in effective]
    if most is not None and effective:
        wanted = _best(effective, forced, threshold, most, order)
    return wanted[::-1]


def _cast_threshold(alpha: float) -> np.float32:
    """Rounds alpha to float32; a positive alpha stays positive, since 0 would split everything.

    At least the smallest normal number: processors may take smaller ones for 0.
    """
    limits = np.finfo(np.float32)
    if alpha > float(limits.max):
        return np.float32(np.inf)
    return np.float32(max(alpha, float(limits.tiny))) if alpha > 0 else np.float32(0)


def _best(
    effective: list[np.ndarray], forced: list[np.ndarray], threshold: np.float32, most: int, order: SplitOrder
) -> list[np.ndarray]:
    """Chooses all forced blocks and `most` others, the first in `order`: lists from the top level down.

    Blocks are listed by level from the top, each in raster order: a stable sort then breaks ties as promised, and a
    parent, whose effective score is no smaller than its child's, always comes first.
    """
    chosen = np.concatenate([beyond.ravel() for beyond in forced])
    scores = np.concatenate([score.ravel() for score in effective])
    candidates = np.flatnonzero((scores >= threshold) & ~chosen)
    ranking = scores
    if order == "side":
        sides = [2.0**level for level in range(len(effective), 0, -1)]  # in cells
        ranking = scores * np.repeat(np.array(sides, np.float32), [score.size for score in effective])
    chosen[candidates[np.argsort(-ranking[candidates], kind="stable")[:most]]] = True
    ends = np.cumsum([score.size for score in effective])[:-1]
    return [part.reshape(score.shape) for part, score in zip(np.split(chosen, ends), effective, strict=True)]


def upsample(grid: np.ndarray, factor: int, shape: tuple[int, ...]) -> np.ndarray:
    """Repeats every entry factor x factor times and crops to `shape`."""
    return grid.repeat(factor, -2).repeat(factor, -1)[..., : shape[-2], : shape[-1]]


def _to_arrays(scores: list[Tensor]) -> list[np.ndarray]:
    """Copies scores to the CPU, at once."""
    if all(score.device.type == "cpu" for score in scores):
        return [score.numpy() for score in scores]
    joined = torch.cat([score.flatten() for score in scores]).cpu().split([score.numel() for score in scores])
    return [part.view(score.shape).numpy() for part, score in zip(joined, scores, strict=True)]


def _sticks_out(shape: tuple[int, ...], level: int, extent: tuple[int, int]) -> np.ndarray:
    """Finds the blocks of a level that are not wholly inside `extent`: bool (rows, cols)."""
    down, across = (np.arange(1, count + 1) << level for count in shape)
    return (down > extent[0])[:, None] | (across > extent[1])
