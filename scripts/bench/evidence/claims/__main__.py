"""Writes new values into the published claims: `python -m scripts.bench.evidence.claims --answers-files ...`.

`python -m scripts.bench.evidence.report --only-claims` fills README's table and RESULTS' table of claims from them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING, Any

from llava.command import OneLineParser, parse_and_run
from scripts.bench.evidence.answering.flags import add_answers_flags, add_published_split_flag, read_answers
from scripts.bench.evidence.answering.scene_sets import MEASURES, SPLITS
from scripts.bench.evidence.claims.published import CLAIMS_FILE, Claim, claimed_ways, read_claims, write_claims
from scripts.bench.evidence.claims.verdicts import count_scenes

if TYPE_CHECKING:
    from scripts.bench.evidence.answering.answers import Cell


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
    add_answers_flags(parser)
    add_published_split_flag(parser)
    parser.add_argument("--shipped", default="seed 1", help="its name in the answers (%(default)s)")
    parser.add_argument("--command", required=True, help="the command that gave the answers, to be published")
    parser.add_argument("--date", type=date.fromisoformat, default=date.today(), help="of the measurement (today)")
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Updates the file."""
    answers = read_answers(options)
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
