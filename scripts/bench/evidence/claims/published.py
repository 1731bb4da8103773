"""The published claims, declared once in claims.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qlip.tools.intervals import Estimate, mean_interval
from scripts.bench.evidence.answering.experiments import EXPERIMENTS
from scripts.bench.evidence.answering.scene_sets import MEASURES
from scripts.bench.evidence.answering.variants import CLIP, SHIPPED, Variant

CLAIMS_FILE = Path(__file__).with_name("claims.json")
CONTROLS = ("random quadtree", "native grid, 1024 tokens")
"""Rows of the rivals that README shows beside CLIP and QLIP."""


@dataclass(frozen=True)
class Claim:
    """One published figure: the share of right answers, in %, to some questions about a set of scenes."""

    text: str
    """What is claimed, without the figure."""
    set: str
    """Of `SCENE_SETS`."""
    way: str
    """Name of the way to encode images, one of `claimed_ways`."""
    measure: str
    """Of `MEASURES`."""
    tokens: float
    """Mean number of visual tokens."""
    value: float
    """Over all checkpoints that were measured."""
    low: float | None
    """Of the value's 95 % interval; None where it was not kept."""
    high: float | None
    checkpoints: int
    """How many."""
    scenes: tuple[int, ...]
    """Of the shipped checkpoint alone: how many scenes have 0, 1, ... of the measure's answers right."""
    command: str
    """Gives the answers that the value is made from."""
    seed: int
    """Series of the scenes."""
    date: str
    """Day of the measurement."""

    @property
    def shipped(self) -> Estimate:
        """The shipped checkpoint's share in %, with its interval."""
        shares = [100 * right / (len(self.scenes) - 1) for right, count in enumerate(self.scenes) for _ in range(count)]
        return mean_interval(shares)


def claimed_ways() -> dict[str, Variant]:
    """Collects the ways to encode images that claims are about, by name."""
    rivals = {way.name: way for way in EXPERIMENTS["rivals"].ways}
    return {way.name: way for way in (CLIP, SHIPPED, *(rivals[name] for name in CONTROLS))}


def read_claims(path: Path = CLAIMS_FILE) -> list[Claim]:
    """Reads a file of claims.

    Raises:
        ValueError: it is not a file of claims, or a claim's way or measure is unknown.
    """
    try:
        claims = [Claim(**{**row, "scenes": tuple(row["scenes"])}) for row in json.loads(path.read_text("utf-8"))]
    except (TypeError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a file of claims: {error}") from None
    for claim in claims:
        if claim.way not in claimed_ways() or claim.measure not in MEASURES:
            raise ValueError(
                f"{path}: no way {claim.way!r} or measure {claim.measure!r}; ways are {', '.join(claimed_ways())},"
                f" measures {', '.join(MEASURES)}"
            )
    return claims


def write_claims(claims: Sequence[Claim], path: Path = CLAIMS_FILE) -> None:
    """Writes a file of claims, one a line."""
    rows = ",\n".join(json.dumps(asdict(claim), ensure_ascii=False) for claim in claims)
    path.write_text(f"[\n{rows}\n]\n", encoding="utf-8")
