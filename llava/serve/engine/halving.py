"""Splits a batch that did not fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def free_and_halve(batch: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Frees the GPU's cached memory and splits a batch of at least two into halves.

    Call it after the error's handler: the error's traceback holds the tensors that did not fit.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(batch) // 2
    return batch[:middle], batch[middle:]
