"""Finds what decides whether a sign is read: `python -m scripts.bench.evidence.reading`.

The model is asked what the sign says, by several trees as they are and with the sign's text split down to single
cells, and it is noted how much of the text each tree shows at full size. Fills a table of docs/results/reading.md.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from llava.command import OneLineParser, integer, parse_and_run
from llava.utils import demo_model_path
from scripts.bench.evidence.answering.flags import known_split
from scripts.bench.evidence.answering.rival_ways import SPENT
from scripts.bench.evidence.answering.scene_sets import MIXED, MIXED_SETS
from scripts.bench.evidence.answering.trees import BY_SCORE
from scripts.markdown_table import table_head, table_row

if TYPE_CHECKING:
    from PIL import Image

    from llava.model.vision.prepared_image import PreparedImage
    from llava.serve.engine import ChatEngine
    from playground.objects import Sign

SETS = tuple(name for name in MIXED_SETS if name.startswith(f"{MIXED}signs "))
PAGE = Path("docs/results/reading.md")
MARK = "reading: causes"
COLUMNS = ("signs", "tree", "tokens", "at full size", "wholly", "read", "more", "read if wholly", "read if not wholly")
WHOLE = 0.999
"""Share of the text from which all of it is at full size."""


@dataclass(frozen=True)
class Tree:
    """How pictures are cut."""

    settings: Mapping[str, Any]
    """Laid over the checkpoint's own."""
    splits_text: bool = False
    """Whether the sign's text is then split down to single cells, whatever the budget."""


TREES = {
    "QLIP as shipped": Tree({}),
    "QLIP as shipped, text split": Tree({}, splits_text=True),
    "by score": Tree(BY_SCORE),
    "by score, text split": Tree(BY_SCORE, splits_text=True),
    "quadtree, any coarsest": Tree({**SPENT, "coarsest": "any"}),
    "quadtree, any coarsest, text split": Tree({**SPENT, "coarsest": "any"}, splits_text=True),
    "CLIP's grid, text split": Tree({"alpha": math.inf}, splits_text=True),
}


@dataclass(frozen=True)
class Reading:
    """One sign by one tree."""

    tokens: int
    seen: float
    """Share of the text's area in leaves of one cell."""
    right: bool
    """Whether it was read."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="reading", description="Find what decides whether a sign is read.")
    parser.add_argument("--model-path", default=demo_model_path(), help="checkpoint (default: the one that ships)")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET")
    parser.add_argument("--split", type=known_split, default="validation", help="series of scenes (%(default)s)")
    parser.add_argument("--scenes", type=integer(), default=400, help="scenes a set, one sign each (%(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the mark to fill (%(default)s)")
    parser.add_argument("--threads", type=integer(), default=1)
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Asks about every sign by every tree, prints the table and fills the page."""
    import torch

    from llava.model.builder import load_pretrained_model
    from llava.serve.engine import ChatEngine
    from scripts.bench.evidence.pages.fill import fill_page

    torch.set_num_threads(options.threads)
    lines = [table_head(COLUMNS)]
    engine = ChatEngine(*load_pretrained_model(options.model_path, device="cpu", qlip=True))
    for name in options.sets:
        found = read_signs(engine, name, options.split, options.scenes)
        lines += rows(name, found)
        print("\n".join(lines[-len(found) :]), flush=True)
    engine.close()
    if options.page.exists():
        fill_page(options.page, {MARK: "\n".join(lines)}, partly=True)


def read_signs(engine: ChatEngine, name: str, split: str, scenes: int) -> dict[str, list[Reading]]:
    """Asks what each sign of a set says, by every one of `TREES`; gives the readings by its name."""
    from llava.eval.run.answerer import Answerer, same_answer
    from scripts.bench.evidence.answering.sets import draw_scene, draw_set

    answerer = Answerer(engine, max_new_tokens=16)
    questions = draw_set(name, split, scenes)
    found: dict[str, list[Reading]] = {tree: [] for tree in TREES}
    for index, (picture, asked) in enumerate(zip(questions.pictures, questions.questions, strict=True)):
        (item,) = (item for item in asked if item.category == "sign")
        _, made = draw_scene(name, split, index)
        if made.sign is None:
            raise ValueError(f"scene {index} of {name} has no sign")
        cut = prepare(engine, picture, made.sign)
        tokens = engine.vision.encode([prepared for prepared, _ in cut])
        said = answerer.answer(tokens, [(number, item.text) for number in range(len(tokens))])
        for tree, (prepared, seen), text in zip(TREES, cut, said, strict=True):
            found[tree].append(Reading(prepared.tokens, seen, same_answer(text, str(item.answer))))
    return found


def prepare(engine: ChatEngine, picture: Image.Image, sign: Sign) -> list[tuple[PreparedImage, float]]:
    """Cuts a picture by each of `TREES`; also finds the share of the sign's text that is at full size."""
    from llava.model.vision.prepared_image import prepare_cut
    from scripts.bench.evidence.reading.cuts import share_at_full_size, split_area, text_area

    tower = engine.model.get_vision_tower()
    cutter = tower.image_processor.cutter
    cut, prepared = cutter.make_preparer(picture), []
    for tree in TREES.values():
        settings = replace(tower.settings, **tree.settings)
        first = cut(settings)
        area = text_area(sign, (picture.height, picture.width), first.leaves.grid)
        leaves = split_area(first.leaves, area) if tree.splits_text else first.leaves
        one = prepare_cut(partial(cut, leaves=leaves), cutter, settings)
        prepared.append((one, share_at_full_size(leaves, area)))
    return prepared


def rows(name: str, found: Mapping[str, Sequence[Reading]]) -> list[str]:
    """Formats the rows of one set, a tree each; shares in %, those of parts with their numbers of signs.

    "more" is how many points more are read than by the first tree, with the interval over the same signs.
    """
    from qlip.tools.intervals import mean_interval
    from scripts.bench.evidence.pages.tables import interval

    lines: list[str] = []
    (first, *_) = found.values()
    for tree, readings in found.items():
        parts = [[each for each in readings if (each.seen >= WHOLE) == wholly] for wholly in (True, False)]
        more = [100.0 * (own.right - before.right) for own, before in zip(readings, first, strict=True)]
        values = [
            f"{fmean(each.tokens for each in readings):.1f}",
            percent(readings, lambda each: each.seen),
            percent(readings, lambda each: each.seen >= WHOLE),
            percent(readings, lambda each: each.right),
            interval(mean_interval(more)) if lines else "",
            *(f"{percent(part, lambda each: each.right)} of {len(part)}" if part else "none" for part in parts),
        ]
        lines.append(table_row(["" if lines else name.removeprefix(MIXED), tree, *values]))
    return lines


def percent(readings: Sequence[Reading], value: Callable[[Reading], float]) -> str:
    """Formats the mean of a value in %."""
    return f"{100 * fmean(map(value, readings)):.1f}"


if __name__ == "__main__":
    sys.exit(main())
