"""Loaders of batches that are lists of indices: for batches by tokens, and for evaluations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader, Dataset


class BatchLoader(DataLoader):
    """A loader of this process's batches, which may differ between epochs."""

    def set_epoch(self, epoch: int) -> None:
        """Begins an epoch."""
        sampler: Any = self.batch_sampler
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)


def make_loader(dataset: Dataset, batches: Any, collate: Callable[[Any], Any], args: Any) -> BatchLoader:
    """Builds a loader.

    Args:
        dataset: map-style.
        batches: lists of indices, in order; an empty one is collated, too.
        collate: makes a batch of samples.
        args: transformers' training arguments, for the workers.
    """
    return BatchLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        multiprocessing_context=args.dataloader_multiprocessing_context,
    )


def share_batches(samples: int, size: int, rank: int, world_size: int) -> list[list[int]]:
    """Lists one process's batches of an evaluation: each sample is in one batch of one process.

    All processes have the same number of batches, so that none waits for another; the last ones may be empty.

    Args:
        samples: number of samples.
        size: of a batch.
        rank: this process.
        world_size: processes.
    """
    steps = -(-samples // (size * world_size))
    starts = range(rank * size, steps * size * world_size, size * world_size)
    return [list(range(start, min(start + size, samples))) for start in starts]
