"""Files of JSON lines that only grow, for work that may be killed at any time. Knows nothing of what a line says."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file, none where there is no file. One without its end, left by a killed process, is cut off."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    return content[:whole].split(b"\n")[:-1]


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Adds a line and waits until it is on the disk."""
    append_lines(path, [row])


def append_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Adds lines and waits until they are on the disk."""
    with path.open("ab") as file:
        file.write(_lines(rows))
        file.flush()
        os.fsync(file.fileno())


def replace_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Puts lines in the place of a file's, all at once: whoever is killed meanwhile leaves the old ones."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    append_lines(new, rows)
    os.replace(new, path)


def _lines(rows: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)
