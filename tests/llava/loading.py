"""Loads the embedded model once for all commands of a test file that ask for it in the same way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from llava.model import builder
from llava.utils import demo_model_path


@contextmanager
def loading_once() -> Iterator[None]:
    """As long as the context is open, equal arguments give the same model; for commands that leave it as it is."""
    load = builder.load_pretrained_model
    loaded: dict[str, Any] = {}

    def load_once(path: str, *others: Any, **options: Any) -> Any:
        if path != str(demo_model_path()):  # what tests write may change
            return load(path, *others, **options)
        key = repr((others, sorted(options.items())))
        if key not in loaded:
            loaded[key] = load(path, *others, **options)
        return loaded[key]

    with patch.object(builder, "load_pretrained_model", load_once):
        yield
