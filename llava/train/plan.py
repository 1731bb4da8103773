"""What decides on the samples of each step of a training: a run continues only one that has the same.

transformers counts the steps that are done, and leaves as many out. Where they took other samples than this run's
would, samples are left out or trained on again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llava.train.saving import read_totals
from llava.train.training_arguments import forms_batches_by_tokens, read_field


def plan_steps(dataset: Any, args: Any, seed: int, lengths: Any) -> dict[str, Any]:
    """Lists what decides on the samples of each step, in words for an error.

    Args:
        dataset: the training data, by words where it has `modality_lengths`; or None.
        args: `TrainingArguments`, or a fork's own.
        seed: of the order.
        lengths: int (N,), tokens of each sample, which batches of a number of tokens depend on; or None.

    Returns:
        Values that JSON holds. By count, half the batch with twice the accumulation is the same; by tokens it is not.
    """
    together = args.gradient_accumulation_steps * args.world_size
    by_tokens, pack = forms_batches_by_tokens(args), bool(read_field(args, "pack"))
    by_count = None if by_tokens else args.train_batch_size * together
    budget = token_budget(args) if by_tokens else None
    by_modality = read_field(args, "group_by_modality_length")
    order = "--group_by_modality_length" if by_modality else str(args.train_sampling_strategy)
    return {
        "samples in the data": 0 if dataset is None else len(dataset),
        "data (a digest of its samples' lengths in words)": digest(getattr(dataset, "modality_lengths", None)),
        "--pack": pack,
        "--data_seed or --seed": seed,
        "samples a step (batch size x accumulation x processes)": by_count,
        "tokens a step (--batch_tokens x accumulation x processes)": budget and budget * together,
        "order of samples": None if by_tokens else order,
        "tokens a batch (--batch_tokens)": budget,
        "tokens a packed row (--model_max_length)": read_field(args, "model_max_length") if pack else None,
        "tokens of the samples (a digest)": digest(lengths) if by_tokens else None,
    }


def token_budget(args: Any) -> int:
    """Computes the most tokens of a batch, for batches of a number of tokens."""
    return read_field(args, "batch_tokens") or args.train_batch_size * read_field(args, "model_max_length")


def digest(numbers: Any) -> str | None:
    """Computes a short digest of whole numbers."""
    if numbers is None:
        return None
    return hashlib.sha256(np.asarray(numbers, dtype="<i8").tobytes()).hexdigest()[:16]


def check_resumed_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    """Checks that a checkpoint's steps took the samples that this run's would.

    Args:
        folder: the checkpoint. Parts of the plan that an older version did not save are not checked.
        plan: of this run.

    Raises:
        ValueError: they do not.
    """
    saved = read_totals(folder).get("plan", {})
    for name, value in plan.items():
        if (before := saved.get(name, value)) != value:
            raise ValueError(
                f"{folder} was trained with {name}: {before}, and this run has {value}, so samples would be left"
                " out or trained on again; give the same, or another --output_dir to start over"
            )
