"""Compares criterion "objects" with "structure": `python -m scripts.bench.evidence.objects --answers-files F`.

`python -m scripts.bench.evidence.run --experiments objects` answers first. Fills the tables of docs/results/objects.md;
`--drawing FILE` draws its picture, for which no answers are needed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import OneLineParser, parse_and_run
from scripts.bench.evidence.answering.answers import Answers, Cell, difference
from scripts.bench.evidence.answering.experiments import EXPERIMENTS
from scripts.bench.evidence.answering.flags import add_answers_flags, add_split_flag, read_answers
from scripts.bench.evidence.answering.scene_sets import MIXED
from scripts.bench.evidence.answering.variants import CLIP
from scripts.bench.evidence.pages.comparison import COLUMNS, average, compare_ways
from scripts.bench.evidence.pages.fill import fill_page
from scripts.bench.evidence.pages.tables import interval
from scripts.markdown_table import join_values, table_head, table_row

if TYPE_CHECKING:
    import argparse

PAGE = Path("docs/results/objects.md")
BEFORE, CHOSEN = "structure 5, alpha 0.8, budget 128", "objects 7, alpha 0.8, budget 128"
"""The ways whose difference each set's row has."""
TABLES = {"sets": None, "candidates": BEFORE, "attention": CHOSEN}
"""Tables: set by set; and means over the sets of other ways, with the one whose answers theirs are compared with: of
the candidates for the default, and of what attention can do besides."""
DRAWN_SET, DRAWN = f"{MIXED}size 96-192", (8, 5, 11, 13, 1, 20)
"""The set and its validation scenes that are drawn."""
SIDE, GAP = 220, 6
"""Side of a drawn scene and the space between two, in pixels."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="objects", description='Compare criterion "objects" with "structure".')
    add_answers_flags(parser)
    add_split_flag(parser)
    parser.add_argument("--table", choices=TABLES, default="sets", help="the table to fill (%(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the mark to fill (%(default)s)")
    parser.add_argument("--drawing", type=Path, help="draw scenes cut in both ways into this file; reads no answers")
    parser.add_argument("--mark", help='the table\'s mark in the page (default: such as "objects: validation")')
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Fills the page's table of a split, or draws its picture."""
    if options.drawing:
        draw(options.drawing)
        return
    answers = read_answers(options)
    before = TABLES[options.table]
    mark = options.mark or f"objects: {options.split}{f', {options.table}' if before else ''}"
    fill_page(options.page, {mark: summarise(answers, before) if before else compare(answers)}, partly=True)
    print(f"filled {options.page}, {mark}")


def draw(path: Path) -> None:
    """Draws some scenes in a row, cut by `BEFORE` above and by `CHOSEN` below."""
    from PIL import Image

    from qlip import QLIPConfig, draw_leaves
    from qlip.cutting import ImageCutter
    from scripts.bench.evidence.answering.sets import draw_scene

    cutter, ways = ImageCutter(native_size=112), {way.name: way for way in EXPERIMENTS["objects"].ways}
    sheet = Image.new("RGB", (len(DRAWN) * (SIDE + GAP) - GAP, 2 * SIDE + GAP), (255, 255, 255))
    for column, index in enumerate(DRAWN):
        picture, _ = draw_scene(DRAWN_SET, "validation", index)
        for row, name in enumerate((BEFORE, CHOSEN)):
            settings = ways[name].resolve(QLIPConfig())
            if settings is not None:
                cut = draw_leaves(picture, cutter.find_leaves(picture, settings)).resize((SIDE, SIDE))
                sheet.paste(cut, (column * (SIDE + GAP), row * (SIDE + GAP)))
    sheet.save(path, quality=85, optimize=True)
    print(f"drew {path}")


def compare(answers: Answers) -> str:
    """Formats each set's accuracy by CLIP, by `BEFORE` and by `CHOSEN`."""
    experiment = EXPERIMENTS["objects"]
    ways = [CLIP, *(way for way in experiment.ways if way.name in (BEFORE, CHOSEN))]
    return compare_ways(answers, ways, experiment.sets, "objects - structure")


def summarise(answers: Answers, compared: str) -> str:
    """Formats the means over the sets by each way of a table that was asked, and how much more is right than by one.

    Args:
        answers: of a split.
        compared: the way that the table's others are compared with, see `TABLES`.

    Raises:
        ValueError: a way was asked about a part of the sets, or the one to compare with not at all.
    """
    experiment = EXPERIMENTS["objects"]
    names = [way.name for way in experiment.ways]
    first, end = (names.index(CHOSEN), None) if compared == CHOSEN else (0, names.index(CHOSEN) + 1)
    ways = experiment.ways[first:end]
    asked: dict[str, list[Cell]] = {}
    for way, row in zip(ways, answers.compare(ways, experiment.sets), strict=True):
        cells = [cell for cell in row if cell]
        if cells and len(cells) < len(row):
            raise ValueError(f"there are no answers to {len(row) - len(cells)} of the sets by {way.name!r}")
        if cells:
            asked[way.name] = cells
    if compared not in asked:
        raise ValueError(f"there are no answers by {compared!r}, with which the others are compared")
    lines = [table_head(["settings", "tokens", *COLUMNS, f"more than {compared.partition(',')[0]}", "by checkpoint"])]
    for name, cells in asked.items():
        more = ["", ""]
        if name != compared:
            models = sorted(entry["model"] for entry in cells[0].rows)
            own = [[cell.of_checkpoint(model) for cell in cells] for model in models]
            before = [[cell.of_checkpoint(model) for cell in asked[compared]] for model in models]
            each = [difference(*pair).mean for pair in zip(before, own, strict=True)]
            more = [interval(difference(asked[compared], cells)), join_values(each)]
        lines.append(table_row([name, *average(cells), *more]))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
