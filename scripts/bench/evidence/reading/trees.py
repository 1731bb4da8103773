"""Trees by which signs are read, and exchanges between two of them. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scripts.bench.evidence.answering.rival_ways import SPENT
from scripts.bench.evidence.answering.trees import BY_SCORE


@dataclass(frozen=True)
class Tree:
    """How pictures are cut."""

    settings: Mapping[str, Any]
    """Laid over the checkpoint's own."""
    splits_text: bool = False
    """Whether the sign's text is then split down to single cells, whatever the budget."""


FULL, SPARSE = "QLIP, structure, text split", "CLIP's grid, text split"
TREES = {
    "QLIP, structure": Tree({}),
    FULL: Tree({}, splits_text=True),
    "by score": Tree(BY_SCORE),
    "by score, text split": Tree(BY_SCORE, splits_text=True),
    "quadtree, any coarsest": Tree({**SPENT, "coarsest": "any"}),
    "quadtree, any coarsest, text split": Tree({**SPENT, "coarsest": "any"}, splits_text=True),
    SPARSE: Tree({"alpha": math.inf}, splits_text=True),
}

EXCHANGES = {
    "both default's": ("the default's", "the default's"),
    "text of the grid's": ("the grid's", "the default's"),
    "others of the grid's": ("the default's", "the grid's"),
    "both grid's": ("the grid's", "the grid's"),
    "others weighed as native": ("the default's", "the default's, each weighed as a native cell"),
}
"""Of the two trees that split the text: the tree in which the tower saw it, and the tree whose other tokens stand
beside it for the language model."""


@dataclass(frozen=True)
class Reading:
    """One sign by one tree."""

    tokens: int
    seen: float
    """Share of the text's area in leaves of one cell."""
    right: bool
    """Whether it was read."""
