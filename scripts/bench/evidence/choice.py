"""Chooses default settings on validation scenes and photographs: `python -m scripts.bench.evidence.choice`.

`python -m scripts.bench.evidence.run --experiments choice --scenes 400` answers first, for every seed of the model. A
candidate may take at most 1.2 times CLIP's tokens on average over the scenes (`--most-on-scenes`), and 1.5 times over
the photographs, which are counted at CLIP ViT-L/14-336's grid with the budget and the blocks scaled to it. Of those, it
should lose at most a point, in every set and kind of question, against the better of CLIP and the best candidate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from llava.command import OneLineParser, parse_and_run, real
from scripts.bench.evidence.answering.experiments import EXPERIMENTS
from scripts.bench.evidence.answering.flags import add_answers_flags, read_answers
from scripts.bench.evidence.answering.variants import CLIP
from scripts.bench.evidence.pages.fill import fill_page
from scripts.markdown_table import join_values, table_head, table_row

if TYPE_CHECKING:
    from qlip import QLIPConfig
    from scripts.bench.evidence.answering.answers import Cell

MOST_ON_SCENES = 1.2
"""Most tokens on average over the scenes, as a multiple of CLIP's."""
MOST_ON_PHOTOGRAPHS = 1.5
"""The same for photographs."""
CLIP_CELLS = 24
"""n of CLIP ViT-L/14-336."""

Shares = Mapping[tuple[str, str], float]
"""Share of right answers in %, by set and kind of question."""


@dataclass(frozen=True)
class Candidate:
    """Settings that were measured."""

    name: str
    shares: Shares
    on_scenes: float
    """Mean tokens, as a multiple of CLIP's."""
    on_photographs: float

    def is_allowed(self, most_on_scenes: float) -> bool:
        """Finds whether it takes few enough tokens."""
        return self.on_scenes <= most_on_scenes and self.on_photographs <= MOST_ON_PHOTOGRAPHS

    def losses(self, best: Shares) -> dict[tuple[str, str], float]:
        """Computes the points that it is behind, by set and kind; 0 where it is ahead."""
        return {key: max(0.0, best[key] - share) for key, share in self.shares.items()}


def best_shares(
    clip: Shares, candidates: Sequence[Candidate], most_on_scenes: float = MOST_ON_SCENES
) -> dict[tuple[str, str], float]:
    """Finds the best share in each set and kind, of CLIP and the candidates that take few enough tokens."""
    allowed = [candidate.shares for candidate in candidates if candidate.is_allowed(most_on_scenes)]
    return {key: max([share, *(shares[key] for shares in allowed)]) for key, share in clip.items()}


def rank(
    clip: Shares, candidates: Sequence[Candidate], most_on_scenes: float = MOST_ON_SCENES
) -> list[tuple[Candidate, dict[tuple[str, str], float]]]:
    """Orders candidates with their losses: allowed ones first, then by the mean loss."""
    best = best_shares(clip, candidates, most_on_scenes)
    losses = [(candidate, candidate.losses(best)) for candidate in candidates]
    return sorted(losses, key=lambda pair: (not pair[0].is_allowed(most_on_scenes), sum(pair[1].values())))


def mean_losses(clip: Shares, candidates: Sequence[Candidate], most_on_scenes: float) -> dict[str, float]:
    """Computes each candidate's mean loss, by its name."""
    ranking = rank(clip, candidates, most_on_scenes)
    return {candidate.name: fmean(losses.values()) for candidate, losses in ranking}


def table(
    clip: Shares,
    candidates: Sequence[Candidate],
    most_on_scenes: float = MOST_ON_SCENES,
    by_checkpoint: Sequence[Mapping[str, float]] = (),
) -> str:
    """Formats the ranking as a Markdown table; with each checkpoint's `mean_losses`, too, if there are several."""
    several = len(by_checkpoint) > 1
    heads = ["settings", "scenes, of CLIP's tokens", "photographs", "mean accuracy", "mean loss"]
    heads += [*(["by checkpoint"] if several else []), "worst loss", "losses above a point"]
    lines = [table_head(heads)]
    for candidate, losses in rank(clip, candidates, most_on_scenes):
        worst = max(losses, key=losses.__getitem__)
        above = sum(loss > 1 for loss in losses.values())
        own = join_values((means[candidate.name] for means in by_checkpoint), 2)
        figures = [f"{candidate.on_scenes:.2f}", f"{candidate.on_photographs:.2f}"]
        figures += [f"{fmean(candidate.shares.values()):.1f}", f"{fmean(losses.values()):.2f}"]
        figures += [own] if several else []
        figures += [f"{losses[worst]:.1f} ({worst[0]}, {worst[1]})", f"{above} of {len(losses)}"]
        lines.append(table_row([candidate.name, *figures]))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="choice", description="Rank candidates for the default settings.")
    add_answers_flags(parser)
    parser.add_argument(
        "--sets", nargs="+", choices=EXPERIMENTS["choice"].sets, metavar="SET", help="only these of the sets"
    )
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=[way.name for way in EXPERIMENTS["choice"].ways],
        metavar="WAY",
        help="only these candidates, by their names: of checkpoints that were not asked about all",
    )
    parser.add_argument(
        "--most-on-scenes",
        type=real(1.0),
        default=MOST_ON_SCENES,
        help="most tokens on average over the scenes, as a multiple of CLIP's (%(default)s)",
    )
    parser.add_argument("--page", type=Path, help="write the table there, between the marks of --mark")
    parser.add_argument("--mark", default="choice", help="name of the marks (%(default)s)")
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Prints the ranking, or writes it to a page.

    Raises:
        ValueError: CLIP or all candidates lack answers in one of the sets.
    """
    answers, wanted = read_answers(options, "validation"), EXPERIMENTS["choice"]
    sets = options.sets or wanted.sets
    ways = [way for way in wanted.ways if not options.ways or way.name in (CLIP.name, *options.ways)]
    rows = {way.name: row for way, row in zip(ways, answers.compare(ways, sets), strict=True)}
    whole = {name: dict(zip(sets, row, strict=True)) for name, row in rows.items() if all(row)}
    if CLIP.name not in whole or len(whole) < 2:
        raise ValueError(
            f"{', '.join(map(str, options.answers_files))} hold no complete answers of CLIP and a candidate; run"
            " python -m scripts.bench.evidence.run --experiments choice"
        )
    native = round(mean_tokens(whole[CLIP.name]) ** 0.5)
    settings = {way.name: way.resolve(answers.own) for way in ways if way.name in whole}
    photographs = {
        name: photograph_tokens(known, native) / CLIP_CELLS**2 for name, known in settings.items() if known is not None
    }
    by_checkpoint = []
    for model in sorted({row["model"] for cell in whole[CLIP.name].values() for row in cell.rows}):
        of_one = {
            name: {chosen: cell.of_checkpoint(model) for chosen, cell in cells.items()} for name, cells in whole.items()
        }
        by_checkpoint.append(mean_losses(*to_candidates(of_one, photographs), options.most_on_scenes))
    ranking = table(*to_candidates(whole, photographs), options.most_on_scenes, by_checkpoint)
    if options.page is None:
        print(ranking)
    else:
        fill_page(options.page, {options.mark: ranking}, partly=True)


def to_candidates(
    cells: Mapping[str, Mapping[str, Cell]], photographs: Mapping[str, float]
) -> tuple[Shares, list[Candidate]]:
    """Builds CLIP's shares and the candidates.

    Args:
        cells: what was answered, by way and set; CLIP's, too.
        photographs: each candidate's tokens on photographs, as a multiple of CLIP's.
    """
    clip = cells[CLIP.name]
    found = [
        Candidate(name, to_shares(cells[name]), mean_tokens(cells[name]) / mean_tokens(clip), count)
        for name, count in photographs.items()
    ]
    return to_shares(clip), found


def to_shares(cells: Mapping[str, Cell]) -> dict[tuple[str, str], float]:
    """Computes the share of right answers by set and kind."""
    return {(name, kind): cell.share((kind,)) for name, cell in cells.items() for kind in cell.rows[0]["right"]}


def mean_tokens(cells: Mapping[str, Cell]) -> float:
    """Computes the mean over the sets."""
    return sum(cell.tokens for cell in cells.values()) / len(cells)


def photograph_tokens(settings: QLIPConfig, native_grid: int) -> float:
    """Counts the mean tokens of photographs at CLIP's grid, with the budget of a grid of `native_grid` scaled to it."""
    from dataclasses import replace

    from scripts.bench.evidence.photographs.collection import load_photographs
    from scripts.bench.evidence.photographs.tokens import count_tokens

    budget = settings.max_tokens
    scaled = None if budget is None else round(budget * (CLIP_CELLS / native_grid) ** 2)
    (counts,) = count_tokens(load_photographs(), {"": replace(settings, max_tokens=scaled)}).values()
    return sum(counts) / len(counts)


if __name__ == "__main__":
    sys.exit(main())
