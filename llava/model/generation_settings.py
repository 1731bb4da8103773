"""Generation settings that can be saved: transformers refuses those that have no effect, which published ones hold.

Vicuna's generation_config.json, for one, has a temperature and does not sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from transformers import GenerationConfig

SAMPLING = ("temperature", "top_p", "min_p", "top_h", "typical_p", "top_k", "epsilon_cutoff", "eta_cutoff")
"""Fields that only sampling reads."""

BEAMS = ("early_stopping", "length_penalty")
"""Fields that only a beam search reads."""

CACHE = ("cache_implementation", "cache_config")
"""Fields that only a generation with a cache reads."""


def drop_unused(settings: GenerationConfig) -> GenerationConfig:
    """Copies generation settings without those that have no effect."""
    kept = deepcopy(settings)
    unused: tuple[str, ...] = () if kept.do_sample else SAMPLING
    unused += () if (kept.num_beams or 1) > 1 else BEAMS
    unused += () if kept.use_cache is not False else CACHE
    unused += () if kept.return_dict_in_generate else tuple(kept.extra_output_flags)
    for name in unused:
        if hasattr(kept, name):
            setattr(kept, name, None)
    return kept


@contextmanager
def savable_generation(model: Any) -> Iterator[None]:
    """Replaces a model's generation settings by those of `drop_unused` while it is saved."""
    before = model.generation_config
    model.generation_config = None if before is None else drop_unused(before)
    try:
        yield
    finally:
        model.generation_config = before
