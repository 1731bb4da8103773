"""Refuses nn.DataParallel for models that compute with modules outside of their own children."""

from __future__ import annotations

from typing import Any


class RefusesReplicas:
    """Base of modules whose copies on other GPUs would compute with the first one's weights."""

    def _replicate_for_data_parallel(self) -> Any:
        """Refuses the copy that nn.DataParallel makes of each module for each GPU."""
        raise TypeError(
            f"nn.DataParallel can't copy this {type(self).__name__} with QLIP in it: run one process for each GPU"
            " (torchrun, with DistributedDataParallel; Trainer does so under torchrun), or show the program one GPU"
            " (CUDA_VISIBLE_DEVICES=0)"
        )
