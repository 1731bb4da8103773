"""The published claims, declared once in claims.json, and the test of whether new answers agree with them.

README's table and RESULTS' table of claims are filled from that file by `scripts.bench.evidence.report --only-claims`.
`python -m scripts.bench.evidence.claims --answers-files ...` writes new values into it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llava.command import OneLineParser, parse_and_run
from qlip.tools.intervals import Estimate, mean_interval
from scripts.bench.evidence.answering.answer_log import ANSWERS_FILE
from scripts.bench.evidence.answering.checkpoints import trained_path
from scripts.bench.evidence.answering.experiments import CLIP, EXPERIMENTS, SHIPPED
from scripts.bench.evidence.answering.scene_sets import MEASURES, SPLITS
from scripts.bench.evidence.answering.variants import Way

if TYPE_CHECKING:
    from scripts.bench.evidence.pages.tables import Cell

CLAIMS_FILE = Path(__file__).with_name("claims.json")
CONTROLS = ("random quadtree", "native grid, 1024 tokens")
"""Rows of the rivals that README shows beside CLIP and QLIP."""
RESAMPLES = 20_000


@dataclass(frozen=True)
class Claim:
    """One published figure: the share of right answers, in %, to some questions about a set of scenes."""

    text: str
    """What is claimed, without the figure."""
    set: str
    """Of `SCENE_SETS`."""
    way: str
    """Name of the way of seeing, one of `claimed_ways`."""
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


@dataclass(frozen=True)
class Verdict:
    """New answers held against a claim."""

    claim: Claim
    found: float
    """Share of right answers in %."""
    low: float
    """Of the interval of the new share minus the claimed one, at the level that was asked for."""
    high: float

    @property
    def covers(self) -> bool:
        """Whether the interval covers no difference."""
        return self.low <= 0 <= self.high


def claimed_ways() -> dict[str, Way]:
    """Collects the ways of seeing that claims are about, by name."""
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


def count_scenes(row: Mapping[str, Any], kinds: Iterable[str]) -> tuple[int, ...]:
    """Counts the scenes with 0, 1, ... right answers to questions of some kinds, in one checkpoint's line of answers.

    Raises:
        ValueError: scenes have different numbers of such questions.
    """
    right: dict[int, list[int]] = {}
    for kind in kinds:
        for mark, scene in zip(row["right"][kind], row["pictures"][kind], strict=True):
            right.setdefault(scene, []).append(int(mark))
    asked = {len(marks) for marks in right.values()}
    if len(asked) != 1:
        raise ValueError(f"scenes of the set {row['set']!r} have {sorted(asked)} questions; all must have as many")
    counts = np.bincount([sum(marks) for marks in right.values()], minlength=asked.pop() + 1)
    return tuple(counts.tolist())


def difference_interval(new: Sequence[int], old: Sequence[int], level: float, seed: int = 0) -> tuple[float, float]:
    """Computes the interval of the difference of two shares in %, by the bootstrap over the scenes of both samples.

    One scene with all answers right and one with none are added to each sample, as Agresti and Caffo (2000) add
    successes and failures: without them the interval of a share of 100 % would have no width.

    Args:
        new: scenes with 0, 1, ... right answers.
        old: the same of the other sample.
        level: of the interval, such as 0.95.
        seed: of the draws.
    """
    rng, shares = np.random.default_rng(seed), []
    for sample in (new, old):
        counts = np.array(sample)
        counts[[0, -1]] += 1
        total = counts.sum()
        draws = rng.multinomial(total, counts / total, RESAMPLES)
        shares.append(draws @ np.linspace(0, 100, len(counts)) / total)
    low, high = np.quantile(shares[0] - shares[1], ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def judge(claim: Claim, scenes: Sequence[int], level: float) -> Verdict:
    """Holds new answers, counted by `count_scenes`, against what the shipped checkpoint got."""
    found = 100 * sum(right * count for right, count in enumerate(scenes)) / ((len(scenes) - 1) * sum(scenes))
    return Verdict(claim, found, *difference_interval(scenes, claim.scenes, level))


def update(claims: Sequence[Claim], cells: Mapping[tuple[str, str], Cell], shipped: str, **new: Any) -> list[Claim]:
    """Writes values into claims.

    Args:
        claims: the old ones.
        cells: answers of all checkpoints, by set and way; claims without answers stay as they are.
        shipped: name of the shipped checkpoint in the answers.
        new: other fields, such as the date.

    Raises:
        ValueError: a cell has no answers of the shipped checkpoint.
    """
    updated = []
    for claim in claims:
        cell = cells.get((claim.set, claim.way))
        if cell is None:
            updated.append(claim)
            continue
        own = [row for row in cell.rows if row["model"] == shipped]
        if not own:
            models = ", ".join(repr(row["model"]) for row in cell.rows)
            raise ValueError(f"no answers of {shipped!r} to {claim.set!r}, {claim.way!r}; there are {models}")
        kinds = MEASURES[claim.measure]
        share = cell.accuracy(kinds)
        values = {"value": share.mean, "low": share.low, "high": share.high}
        changed = replace(
            claim,
            tokens=round(cell.tokens, 1),
            scenes=count_scenes(own[0], kinds),
            checkpoints=len(cell.rows),
            **{name: round(value, 1) for name, value in values.items()},
            **new,
        )
        updated.append(changed)
    return updated


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="claims", description="Write measured values into the file of claims.")
    parser.add_argument("--answers-files", type=Path, nargs="+", default=[ANSWERS_FILE], help="files that `run` wrote")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--model-path", default=trained_path(), help="checkpoint with the shipped settings")
    parser.add_argument("--shipped", default="seed 1", help="its name in the answers (%(default)s)")
    parser.add_argument("--command", required=True, help="the command that gave the answers, to be published")
    parser.add_argument("--date", type=date.fromisoformat, default=date.today(), help="of the measurement (today)")
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Updates the file."""
    from llava.eval.sweep.grid import read_own_settings
    from scripts.bench.evidence.pages.tables import Answers

    answers = Answers(options.answers_files, options.split, read_own_settings(options.model_path))
    claims, ways = read_claims(), claimed_ways()
    cells = {(claim.set, claim.way): answers.cell(ways[claim.way], claim.set) for claim in claims}
    known = {key: cell for key, cell in cells.items() if cell is not None}
    write_claims(
        update(
            claims,
            known,
            options.shipped,
            command=options.command,
            seed=SPLITS[options.split],
            date=options.date.isoformat(),
        )
    )
    print(f"{len(known)} of {len(cells)} rows updated in {CLAIMS_FILE}")


if __name__ == "__main__":
    sys.exit(main())
