"""Writes generated parts of a page between its marks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def fill(text: str, parts: Mapping[str, str], partly: bool = False) -> str:
    """Writes each part between its marks; `partly` leaves marks without a part as they are.

    Raises:
        ValueError: the text has a mark without a part.
    """

    def part(match: re.Match[str]) -> str:
        if match["name"] not in parts and partly:
            return match[0]
        if match["name"] not in parts:
            raise ValueError(f"no part for the mark {match['name']!r}; parts are {', '.join(parts)}")
        return f"<!-- {match['name']} -->\n{parts[match['name']]}\n<!-- end {match['name']} -->"

    return re.sub(r"<!-- (?P<name>[^\n]+?) -->\n(?:.*?\n)?<!-- end (?P=name) -->", part, text, flags=re.DOTALL)


def fill_page(page: Path, parts: Mapping[str, str], partly: bool = False) -> None:
    """Writes each part between its marks in a file, as `fill` does.

    Raises:
        FileNotFoundError: there is no such page.
        ValueError: it has a mark without a part.
    """
    page.write_text(fill(page.read_text(encoding="utf-8"), parts, partly), encoding="utf-8")
