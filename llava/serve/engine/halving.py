"""Splits a batch that did not fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeVar

import torch

from llava.serve.engine.errors import ran_out_of_memory

logger = logging.getLogger(__name__)

T = TypeVar("T")


def split_after_failure(batch: Sequence[T], failure: Exception, what: str) -> list[Sequence[T]]:
    """Splits a failed batch of at least two: into halves if memory ran out, else into its members.

    Args:
        batch: what failed together.
        failure: why.
        what: names the batch in the log, after "%d requests".
    """
    if ran_out_of_memory(failure):
        logger.warning("out of memory with %d requests %s; trying half as many", len(batch), what)
        return list(free_and_halve(batch))
    logger.warning("%d requests %s failed; trying each alone", len(batch), what, exc_info=failure)
    return [[member] for member in batch]


def release_tensors(failure: Exception) -> Exception:
    """Drops the traceback of an error of memory, which would hold the tensors that did not fit."""
    return failure.with_traceback(None) if ran_out_of_memory(failure) else failure


def free_and_halve(batch: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Frees the GPU's cached memory and splits a batch of at least two into halves.

    Call it after the error's handler: the error's traceback holds the tensors that did not fit.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(batch) // 2
    return batch[:middle], batch[middle:]
