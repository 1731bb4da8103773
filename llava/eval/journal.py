"""Files of JSON lines that only grow, for work that may be killed at any time. Knows nothing of what a line says."""

from __future__ import annotations

import json
import os
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
    with path.open("ab") as file:
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
