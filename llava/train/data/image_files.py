"""Which image files exist, for millions of samples: each folder is listed once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def make_finder(folder: Path) -> Callable[[str], bool]:
    """Makes a function that checks whether a path, absolute or relative to `folder`, exists.

    A name that a listing lacks is checked by itself: the file system may ignore case, and a folder may be readable by
    path alone.
    """
    listed: dict[str, frozenset[str]] = {}

    def exists(path: str) -> bool:
        place, name = os.path.split(os.path.join(folder, path))
        if place not in listed:
            try:
                listed[place] = frozenset(os.listdir(place))
            except OSError:
                listed[place] = frozenset()
        return name in listed[place] or os.path.exists(os.path.join(place, name))

    return exists
