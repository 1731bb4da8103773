"""The arguments of a training run, and LLaVA's fields and ours read from a fork's own class of arguments."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
import transformers

from llava.train.flags import LlavaTrainingFields

DEFAULTS: dict[str, Any] = {item.name: item.default for item in fields(LlavaTrainingFields)}
"""LLaVA's fields and ours, by name."""


@dataclass
class TrainingArguments(LlavaTrainingFields, transformers.TrainingArguments):
    """transformers' training arguments with LLaVA's and ours; LLaVA's defaults where they differ."""

    optim: str = field(default="adamw_torch")
    remove_unused_columns: bool = field(default=False)
    logging_nan_inf_filter: bool = field(default=False)  # transformers' True logs 0 for a loss that is not finite

    @property
    def recomputes_activations(self) -> bool:
        """Whether blocks are computed again in the backward pass, by the name that this transformers has for it."""
        return bool(getattr(self, "activation_checkpointing", False) or getattr(self, "gradient_checkpointing", False))

    @property
    def batches_by_tokens(self) -> bool:
        """Whether a batch is a number of tokens, not of samples."""
        return forms_batches_by_tokens(self)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of the products: bfloat16 or float16 where asked for, else float32."""
        return choose_compute_dtype(self)


def read_field(args: Any, name: str) -> Any:
    """Reads one of LLaVA's fields or ours; its default where the arguments, of a fork's own class, lack it."""
    return getattr(args, name, DEFAULTS[name])


def forms_batches_by_tokens(args: Any) -> bool:
    """Whether a batch is a number of tokens, not of samples."""
    return bool(read_field(args, "pack")) or read_field(args, "batch_tokens") is not None


def choose_compute_dtype(args: Any) -> torch.dtype:
    """Chooses the dtype of the products: bfloat16 or float16 where asked for, else float32."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
