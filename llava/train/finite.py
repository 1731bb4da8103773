"""Finds trained weights that are not finite: those of a run that has diverged, which are not saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

START_FROM_WEIGHTS = (
    "start from its weights: a whole model as --model_name_or_path, a projector as --pretrain_mm_mlp_adapter, LoRA"
    " merged by merge_lora_weights.py"
)
"""What can be done with a checkpoint that is not continued."""


def find_non_finite(model: nn.Module) -> str | None:
    """Finds a trained parameter with a value that is NaN or infinite; None if there is none in this process.

    One pass reads each parameter, without a copy, and one transfer from the device decides. Under ZeRO-3 each is made
    whole for its turn, so that every process must call this; under FSDP a process sees its shards alone.
    """
    names: list[str] = []
    bounds: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with _whole(parameter):
                own = parameter.detach()
                own = own.to_local() if hasattr(own, "to_local") else own  # a DTensor of FSDP 2
                if own.numel():
                    names.append(name)
                    # Both are NaN where any value is, and one of them is infinite where any value is.
                    bounds.append(torch.stack(torch.aminmax(own)).float())
    if not bounds:
        return None
    finite = torch.stack([pair.to(bounds[0].device) for pair in bounds]).isfinite().all(dim=1).tolist()
    return next((name for name, is_finite in zip(names, finite, strict=True) if not is_finite), None)


def _whole(parameter: Tensor) -> Any:
    """Opens a parameter that ZeRO-3 shards, to be read."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    from deepspeed import zero  # an extra

    return zero.GatheredParameters([parameter])


def check_finite(
    model: nn.Module, step: int, kept: Sequence[Path], gather: Callable[[str | None], list[str | None]]
) -> None:
    """Checks that all trained weights are finite; every process must call it, and all of them agree.

    Args:
        model: what is trained.
        step: of the run, for the error.
        kept: the checkpoints of the run so far.
        gather: collects one object per process.

    Raises:
        ValueError: some are not.
    """
    found = next((name for name in gather(find_non_finite(model)) if name is not None), None)
    if found is None:
        return
    last, way_out = "no checkpoint was saved before", ""
    if kept:
        last = f"the last checkpoint, {kept[-1]}, stays"
        way_out = f", and give another --output_dir to start over. A new run can {START_FROM_WEIGHTS}"
    raise ValueError(
        f"training has diverged: after step {step} {found} has values that are not finite, so they are not saved;"
        f" {last}. Lower --learning_rate{way_out}"
    )
