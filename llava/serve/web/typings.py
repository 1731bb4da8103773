"""A shorter import of Gradio. Imports nothing heavy."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def skip_typings() -> Iterator[None]:
    """Keeps Gradio, imported inside, from writing type stubs of its components: half of the time that it takes.

    On each start it parses all of its components' sources to write the stubs beside them; of a class that is in no file
    it writes none.
    """
    find_file = inspect.getfile

    def find_other_file(thing: Any) -> str:
        if str(getattr(thing, "__module__", "")).startswith("gradio."):
            raise OSError("a component of Gradio")
        return find_file(thing)

    inspect.getfile = find_other_file
    try:
        yield
    finally:
        inspect.getfile = find_file
