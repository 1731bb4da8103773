"""Parameters that DeepSpeed's ZeRO-3 shards over processes, made whole where they are read or changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


@contextmanager
def whole_parameters(*parameters: Tensor) -> Iterator[None]:
    """Makes sharded parameters whole while the context is open; changes are those of process 0.

    Every process must open it. Parameters that are not sharded are unaffected.
    """
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        yield
        return
    from deepspeed import zero  # an extra

    with zero.GatheredParameters(sharded, modifier_rank=0):
        yield
