"""transformers' `from_pretrained` for callers that refuse missing weights, which transformers initialises at random."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

MIN_BAR_BYTES = 2**30
"""Bytes of weights below which no progress bar is shown: they load in about a second."""


@dataclass(frozen=True)
class Loaded:
    """A model, and the differences between it and its files."""

    model: Any
    missing: set[str]
    """The model's weights that no file holds; their values are random."""

    unread: set[str]
    """Tensors of the files that the model has no place for."""


def read_pretrained(model_class: Any, name: str | Path, **options: Any) -> Loaded:
    """Loads a model by `model_class.from_pretrained`.

    Raises:
        ValueError: the files hold a weight of another shape than the configuration asks for.
    """
    with _without_report(), _without_bar(weights_size(name)):
        # With this flag transformers reports the weights by name, instead of a table and an error without names.
        model, report = model_class.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    if wrong := sorted(report["mismatched_keys"]):
        weight, found, wanted = wrong[0]
        raise ValueError(
            f"{name}: the files hold {weight!r} of shape {tuple(found)}, config.json asks for {tuple(wanted)}"
            + (f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else "")
        )
    return Loaded(model, set(report["missing_keys"]), set(report["unexpected_keys"]))


@contextmanager
def _without_report() -> Iterator[None]:
    """Drops transformers' table of missing, unexpected and mismatched weights from its log."""
    log = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    log.addFilter(keep)
    try:
        yield
    finally:
        log.removeFilter(keep)


def weights_size(name: str | Path) -> int | None:
    """Measures a checkpoint folder's weights in bytes; None where the name is a hub id, not a folder."""
    folder = Path(name)
    if not folder.is_dir():
        return None
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))


@contextmanager
def _without_bar(size: int | None) -> Iterator[None]:
    """Hides transformers' progress bar for weights that load quickly; `size` in bytes, None where it is not known."""
    if size is None or size >= MIN_BAR_BYTES:
        yield
        return
    before = transformers_logging.set_tqdm_hook(lambda factory, args, kwargs: factory(*args, **kwargs, disable=True))
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(before)
