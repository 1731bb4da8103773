"""Atomic replacement of files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(file: str | Path) -> Iterator[Path]:
    """Yields a path beside a file, whose content is to be written there and replaces the file's at the end.

    A crash leaves the old file; so does an error, after which what was written is deleted.
    """
    path = Path(file)
    new = path.with_name(f".{path.name}.{uuid4().hex[:8]}.new")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
