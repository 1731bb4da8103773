"""Ways to encode an image: QLIP's settings, CLIP's own tower, or another token reduction. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from qlip import QLIPConfig
from scripts.bench.evidence.answering.trees import STRUCTURE

Rival = Literal["cls", "cls+merge", "prumerge", "tome", "leaves", "crop"]
Prior = Literal["grid", "consistency", "released"]


@dataclass(frozen=True)
class Variant:
    """One way to encode an image; the row of a table. A "way" in flags, in names and in files of answers."""

    name: str
    settings: Mapping[str, Any] | None = field(default_factory=dict)
    """QLIP settings laid over the checkpoint's own; None is CLIP's own tower."""
    rival: Rival | None = None
    """Another token reduction instead of the quadtree; `settings` then give the budget and the positions, for "leaves"
    also the tree; "crop" encodes by CLIP's own tower."""
    prior: Prior | None = None
    """Which trained MLP prior to use, for interpolation "mlp"."""
    scrambled: bool = False
    """Positions as the QLIP authors' released code interpolates them."""

    def resolve(self, own: QLIPConfig) -> QLIPConfig | None:
        """Merges the settings into a checkpoint's own; None for CLIP. `Subject` adds the file of a prior."""
        return None if self.settings is None else replace(own, **self.settings)

    def key(self, own: QLIPConfig) -> dict[str, Any]:
        """Builds what identifies this way, whatever its name, ready for JSON."""
        settings = self.resolve(own)
        return {
            "settings": None if settings is None else settings.to_dict(),
            "rival": self.rival,
            "prior": self.prior,
            "scrambled": self.scrambled,
        }


CLIP = Variant("CLIP", None)
SHIPPED = Variant("QLIP as shipped")
BEFORE = Variant("QLIP, structure", STRUCTURE)
"""What was shipped until 30 November 2026."""
