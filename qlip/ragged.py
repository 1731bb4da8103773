"""Sequences of different lengths -> a padded batch, and the attention mask of its keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_ragged(sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pads sequences of (N_i, ...) with zeros at the end.

    Returns:
        The batch (B, max N_i, ...), and `valid`, bool (B, max N_i), True on tokens.
    """
    lengths = [len(sequence) for sequence in sequences]
    valid = torch.arange(max(lengths), device="cpu") < torch.tensor(lengths, device="cpu")[:, None]
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True), valid.to(sequences[0].device)


def key_mask(valid: Tensor, sizes: Sequence[Tensor], bias: float, prefix: int, dtype: torch.dtype) -> Tensor | None:
    """Builds the additive attention mask of a padded batch of leaves, (B, 1, 1, T) over keys; None if it is all zero.

    Args:
        valid: bool (B, T), from `pad_ragged`.
        sizes: (N_i,): sides of each image's leaves, in the cells that count.
        bias: s; adds s * log(size^2) to a leaf's key.
        prefix: tokens before the leaves, [CLS].
        dtype: of the mask, which is the lowest number on padding.
    """
    ragged = len({len(size) for size in sizes}) > 1
    if not ragged and (bias == 0 or all((size == 1).all() for size in sizes)):
        return None
    mask = torch.zeros(valid.shape, dtype=torch.float32, device=valid.device)
    if bias:
        areas = [F.pad(2 * size.float().log(), (prefix, 0)) for size in sizes]
        mask += bias * pad_ragged(areas)[0].to(mask)
    mask = mask.to(dtype).masked_fill(~valid, torch.finfo(dtype).min)  # float64's lowest does not fit into float32
    return mask[:, None, None, :]
