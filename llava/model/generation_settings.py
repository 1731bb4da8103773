"""Generation settings: which one holds of those that are given, and those that can be saved.

transformers refuses to save what has no effect, which published ones hold: Vicuna's generation_config.json, for one,
has a temperature and does not sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


def find_option(name: str, options: Mapping[str, Any], config: Any) -> Any:
    """Finds an option of `generate` as transformers does.

    Args:
        name: of the option.
        options: arguments of `generate`, a generation config among them.
        config: the model's generation config, for what they leave out.
    """
    if name in options:
        return options[name]
    value = getattr(options.get("generation_config"), name, None)
    return getattr(config, name, None) if value is None else value


def check_max_length(tokens: int, options: Mapping[str, Any], config: Any) -> None:
    """Checks that `max_length`, where it holds, leaves place for an answer.

    Args:
        tokens: of the longest prompt with its images, which count.
        options: arguments of `generate`.
        config: the model's generation config.

    Raises:
        ValueError: it leaves none; transformers would name a negative length.
    """
    longest = find_option("max_length", options, config)
    if longest is None or find_option("max_new_tokens", options, config) is not None or longest > tokens:
        return
    raise ValueError(
        f"max_length is {longest}, and a prompt has {tokens} tokens with its images, which count: no place is left for"
        " an answer; give max_new_tokens, the tokens of the answer alone"
    )


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
