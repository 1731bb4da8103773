"""Measures the published claims again on scenes of a new seed: `make evidence-quick`, `SEED=...` for a certain one.

Prints for each claim whether the interval of the difference covers zero. The exit code is 1 if that fails for any claim
at the level at which all of them together hold with 95 % (Bonferroni): of many intervals at 95 %, some miss by chance.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

from llava.command import OneLineParser, integer, parse_and_run
from llava.utils import demo_model_path
from scripts.bench.evidence.answering.answer_log import AnswerLog, read_cells
from scripts.bench.evidence.answering.scene_sets import MEASURES, new_series
from scripts.bench.evidence.answering.variants import CLIP, SHIPPED
from scripts.bench.evidence.claims.published import CLAIMS_FILE, Claim, claimed_ways, read_claims
from scripts.bench.evidence.claims.verdicts import Verdict, count_scenes, judge

SHIPPED_MODEL = "shipped"
QUICK_SCENES = 120
WIDE = 20.0
"""Points: an interval wider than this covers a broken claim easily."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="quick", description="Measure the published claims again on new scenes.")
    parser.add_argument("--seed", type=integer(), help="series of scenes; by default today's date as YYYYMMDD")
    parser.add_argument("--scenes", type=integer(2), default=QUICK_SCENES, help="scenes a set (%(default)s)")
    parser.add_argument("--all", action="store_true", help="the control rows, too: random splits, 1024 uniform tokens")
    parser.add_argument("--claims", type=Path, default=CLAIMS_FILE, help="file of claims (%(default)s)")
    parser.add_argument("--model-path", default=demo_model_path())
    parser.add_argument("--answers-file", type=Path, help="keep the answers here, and continue from it if it exists")
    parser.add_argument("--threads", type=integer(), default=os.cpu_count())
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> int:
    """Measures, prints the verdicts, and returns the exit code.

    Raises:
        ValueError: the seed is that of published or of training scenes.
    """
    seed = int(date.today().strftime("%Y%m%d")) if options.seed is None else options.seed
    split = new_series(seed)
    claims = read_claims(options.claims)
    if not options.all:
        claims = [claim for claim in claims if claim.way in (CLIP.name, SHIPPED.name)]
    with TemporaryDirectory() as folder:  # kept answers could be those of other weights or of older code
        path = options.answers_file or Path(folder) / "answers.jsonl"
        measure(claims, split, options, path)
        counts = count_answers(claims, path, split, options)
    verdicts, strict = (
        [judge(claim, scenes, level) for claim, scenes in zip(claims, counts, strict=True)]
        for level in (0.95, 1 - 0.05 / len(claims))
    )
    print(format_verdicts(verdicts, strict))
    return int(not all(verdict.covers for verdict in strict))


def measure(claims: Sequence[Claim], split: str, options: argparse.Namespace, path: Path) -> None:
    """Answers the questions of every set and way that claims are about; what the file holds is not answered again."""
    import torch

    from scripts.bench.evidence.answering.subject import Subject
    from scripts.bench.evidence.run import run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    ways = claimed_ways()
    pairs = list(dict.fromkeys((claim.set, claim.way) for claim in claims))
    subject = Subject(options.model_path, {}, "cpu", 4096)
    run({SHIPPED_MODEL: subject}, [(ways[way], name) for name, way in pairs], split, options.scenes, AnswerLog(path))


def count_answers(
    claims: Sequence[Claim], path: Path, split: str, options: argparse.Namespace
) -> list[tuple[int, ...]]:
    """Counts, for each claim, the scenes of a file's answers by how many are right."""
    from llava.eval.sweep.grid import read_own_settings

    own, ways = read_own_settings(options.model_path), claimed_ways()
    rows = [row for _, row in read_cells(path).numbered if (row["split"], row["scenes"]) == (split, options.scenes)]
    counts = []
    for claim in claims:
        wanted = ways[claim.way].key(own)
        (row,) = (row for row in rows if row["set"] == claim.set and row["way"] == wanted)
        counts.append(count_scenes(row, MEASURES[claim.measure]))
    return counts


def format_verdicts(verdicts: Sequence[Verdict], strict: Sequence[Verdict]) -> str:
    """Formats a line a claim, and a summary."""
    lines = []
    for verdict, together in zip(verdicts, strict, strict=True):
        word = "covered" if verdict.covers else "by chance?" if together.covers else "NOT COVERED"
        lines.append(
            f"{word:<12}{verdict.claim.text}: claimed {verdict.claim.shipped.mean:.1f}, found {verdict.found:.1f},"
            f" difference in [{verdict.low:+.1f}, {verdict.high:+.1f}]"
        )
    single = sum(verdict.covers for verdict in verdicts)
    all_of_them = sum(verdict.covers for verdict in strict)
    lines.append(
        f"{single} of {len(verdicts)} claims are covered at 95 % each, {all_of_them} at 95 % for all claims together"
    )
    if wide := sum(verdict.high - verdict.low > WIDE for verdict in verdicts):
        lines.append(
            f"{wide} of {len(verdicts)} intervals are wider than {WIDE:.0f} points and would cover a broken claim, too;"
            " --scenes narrows them"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
