"""LLaVA's order of samples: global batches of one modality and of similar length, spread evenly over the processes.

A megabatch is a global batch: what all processes take together before an optimizer step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Generator
from torch.utils.data import Sampler

from llava.train.training_arguments import read_field


def choose_sampler(dataset: Any, args: Any, seed: int) -> Sampler[int] | None:
    """Makes the sampler of a training run; None where transformers' own is asked for.

    Args:
        dataset: the training data, with `lengths` and `modality_lengths`; or None.
        args: `TrainingArguments`, or a fork's own.
        seed: of the order.
    """
    # transformers' own would open every image to count the tokens of its text, and its order is not a resumed run's.
    by_modality = read_field(args, "group_by_modality_length")  # takes precedence over the other, as in LLaVA
    by_length = args.train_sampling_strategy == "group_by_length" and hasattr(dataset, "lengths")
    if dataset is None or not (by_length or by_modality):
        return None
    return LengthGroupedSampler(
        args.train_batch_size,
        world_size=args.world_size * args.gradient_accumulation_steps,
        lengths=dataset.modality_lengths if by_modality else dataset.lengths,
        group_by_modality=by_modality,
        seed=seed,
    )


class LengthGroupedSampler(Sampler[int]):
    """Orders samples by `get_modality_length_grouped_indices` or `get_length_grouped_indices`, by epoch.

    The order depends on the seed and the epoch alone, so that a resumed run has the same.
    """

    def __init__(
        self,
        batch_size: int,
        world_size: int,
        lengths: Sequence[int] | None = None,
        generator: Generator | None = None,
        group_by_modality: bool = False,
        *,
        seed: int = 0,
    ) -> None:
        """
        Args:
            batch_size: samples of a process's batch.
            world_size: batches of an optimizer step: processes x accumulation.
            lengths: of each sample; with `group_by_modality` negative for text alone.
            generator: draws the order, instead of the seed.
            group_by_modality: whether a global batch has one modality.
            seed: of the order.

        Raises:
            ValueError: no lengths, a length of 0, or a size below 1.
        """
        if lengths is None:
            raise ValueError("LengthGroupedSampler needs lengths, one for each sample")
        _check_lengths(lengths)
        _check_sizes(batch_size, world_size)
        self.batch_size = batch_size
        self.world_size = world_size
        self.lengths = lengths
        self.generator = generator
        self.group_by_modality = group_by_modality
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order the next iteration has."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = self.generator
        if generator is None:
            # A sum would make seed 1 in epoch 0 equal to seed 0 in epoch 1.
            generator = Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        group = get_modality_length_grouped_indices if self.group_by_modality else get_length_grouped_indices
        return iter(group(self.lengths, self.batch_size, self.world_size, generator))


def get_modality_length_grouped_indices(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: Generator | None = None
) -> list[int]:
    """Orders samples so that every megabatch has one modality, except for those of the samples left over at the end.

    Args:
        lengths: of each sample, negative for text alone.
        batch_size: samples of a process's batch.
        world_size: batches of an optimizer step.
        generator: draws the order; None is torch's global one.

    Returns:
        Each index once. Batch i of a megabatch belongs to process i.

    Raises:
        ValueError: a length of 0.
    """
    _check_lengths(lengths)
    _check_sizes(batch_size, world_size)
    size = batch_size * world_size
    whole, rest = [], []
    for sign in (1, -1):
        indices = [i for i, length in enumerate(lengths) if sign * length > 0]
        own = [abs(lengths[i]) for i in indices]
        order = [indices[i] for i in get_length_grouped_indices(own, batch_size, world_size, generator)]
        end = len(order) // size * size
        whole += [order[start : start + size] for start in range(0, end, size)]
        rest += order[end:]
    return [i for number in _permutation(len(whole), generator) for i in whole[number]] + rest


def get_length_grouped_indices(
    lengths: Sequence[int],
    batch_size: int,
    world_size: int,
    generator: Generator | None = None,
    merge: bool = True,
) -> list[int]:
    """Orders samples at random, those of a megabatch from long to short, and spreads these over the processes.

    Args:
        lengths: of each sample.
        batch_size: samples of a process's batch.
        world_size: batches of an optimizer step.
        generator: draws the order; None is torch's global one.
        merge: accepted for LLaVA's callers; not read.

    Returns:
        Each index once. Batch i of a megabatch belongs to process i.
    """
    _check_sizes(batch_size, world_size)
    size = batch_size * world_size
    order = _permutation(len(lengths), generator)
    grouped = []
    for start in range(0, len(order), size):
        longest_first = sorted(order[start : start + size], key=lambda i: -lengths[i])
        grouped += [i for chunk in split_to_even_chunks(longest_first, lengths, world_size) for i in chunk]
    return grouped


def split_to_even_chunks(indices: Sequence[int], lengths: Sequence[int], num_chunks: int) -> list[list[int]]:
    """Splits samples into chunks of equal number and similar total length.

    Args:
        indices: of the samples, from long to short.
        lengths: of all samples.
        num_chunks: how many; where `indices` cannot be divided by it, they are dealt out one by one.
    """
    if len(indices) % num_chunks:
        return [list(indices[start::num_chunks]) for start in range(num_chunks)]
    size = len(indices) // num_chunks
    chunks: list[list[int]] = [[] for _ in range(num_chunks)]
    totals = [0] * num_chunks
    for index in indices:
        shortest = min((number for number in range(num_chunks) if len(chunks[number]) < size), key=totals.__getitem__)
        chunks[shortest].append(index)
        totals[shortest] += lengths[index]
    return chunks


def _permutation(count: int, generator: Generator | None) -> list[int]:
    return torch.randperm(count, generator=generator).tolist()


def _check_lengths(lengths: Sequence[int]) -> None:
    for index, length in enumerate(lengths):
        if length == 0:
            raise ValueError(f"sample {index} has length 0; every sample needs at least one word")


def _check_sizes(batch_size: int, world_size: int) -> None:
    if batch_size < 1 or world_size < 1:
        raise ValueError(f"batch_size is {batch_size} and world_size {world_size}; both must be at least 1")
