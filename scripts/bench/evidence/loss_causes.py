"""Finds where a quadtree's losses arise: `python -m scripts.bench.evidence.loss_causes`.

The language model is given the leaves' places, but features of CLIP's uniform grid, or the other way round. What is
lost with CLIP's features is lost by the number and the places of tokens; what only the leaves' features lose, is lost
by the tower. Fills the table of docs/results/loss-causes.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import OneLineParser, integer, parse_and_run
from scripts.bench.evidence.checkpoints import trained_path
from scripts.bench.evidence.scene_sets import SET_NAMES, SPLITS

if TYPE_CHECKING:
    from PIL import Image

    from llava.model.vision.image_tokens import ImageTokens
    from llava.serve.engine import ChatEngine
    from qlip import Leaves
    from qlip.tools.intervals import Estimate
    from scripts.bench.evidence.sets import QuestionSet

SETS = ("48-96 px", "96-192 px", "mixed/size 48-96", "mixed/size 96-192")
SCENES = 400
PAGE = Path("docs/results/loss-causes.md")
MARK = "loss causes"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="loss_causes", description="Exchange a quadtree's features with CLIP's.")
    parser.add_argument(
        "--model-path", default=trained_path(), help="checkpoint (default: the one that was trained as LLaVA is)"
    )
    parser.add_argument("--sets", nargs="+", choices=SET_NAMES, default=list(SETS), metavar="SET")
    parser.add_argument("--split", choices=SPLITS, default="validation", help="series of scenes (%(default)s)")
    parser.add_argument("--scenes", type=integer(), default=SCENES, help="scenes a set, five questions each")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the mark to fill (%(default)s)")
    parser.add_argument("--threads", type=integer(), default=1)
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Asks every set in every way, prints the table and fills the page."""
    import torch

    from llava.model.builder import load_pretrained_model
    from llava.serve.engine import ChatEngine
    from scripts.bench.evidence.claims import MEASURES
    from scripts.bench.evidence.report import fill
    from scripts.bench.evidence.sets import draw_set
    from scripts.bench.evidence.tables import interval
    from scripts.markdown_table import table_head, table_row

    torch.set_num_threads(options.threads)
    engine = ChatEngine(*load_pretrained_model(options.model_path, device="cpu", qlip=True))
    lines = [table_head(["scenes", "the language model gets", "tokens", *MEASURES])]
    for name in options.sets:
        for number, (way, (tokens, shares)) in enumerate(
            examine(engine, draw_set(name, options.split, options.scenes), MEASURES).items()
        ):
            cells = ["" if number else name, way, f"{tokens:.1f}", *map(interval, shares)]
            lines.append(table_row(cells))
        print("\n".join(lines), flush=True)
    if options.page.exists():
        text = fill(options.page.read_text(encoding="utf-8"), {MARK: "\n".join(lines)})
        options.page.write_text(text, encoding="utf-8")


def examine(
    engine: ChatEngine, questions: QuestionSet, measures: Mapping[str, Sequence[str]]
) -> dict[str, tuple[float, list[Estimate]]]:
    """Asks every question in every way of `exchange_features`.

    Returns:
        By way: the mean number of tokens, and the share of right answers in % by measure, whose kinds of questions
        are given.
    """
    from llava.eval.run.answerer import Answerer, same_answer
    from qlip.tools.intervals import mean_interval

    answerer = Answerer(engine, max_new_tokens=16, batch_tokens=4096)
    marks: dict[str, list[tuple[str, float, int]]] = {}
    counts: dict[str, list[int]] = {}
    for picture, (image, asked) in enumerate(zip(questions.pictures, questions.questions, strict=True)):
        views = see(engine, image)
        pairs = [(index, item) for index in range(len(views)) for item in asked]
        said = answerer.answer(list(views.values()), [(index, item.text) for index, item in pairs])
        ways = list(views)
        for (index, item), answer in zip(pairs, said, strict=True):
            right = 100.0 * same_answer(answer, str(item.answer))
            marks.setdefault(ways[index], []).append((str(item.category), right, picture))
        for way, tokens in views.items():
            counts.setdefault(way, []).append(len(tokens.features))
    found = {}
    for way, own in marks.items():
        chosen = [[(right, picture) for kind, right, picture in own if kind in kinds] for kinds in measures.values()]
        shares = [mean_interval([right for right, _ in part], [owner for _, owner in part]) for part in chosen]
        found[way] = (sum(counts[way]) / len(counts[way]), shares)
    return found


def see(engine: ChatEngine, image: Image.Image) -> dict[str, ImageTokens]:
    """Encodes a square image by CLIP's grid and by the shipped quadtree, and exchanges their features."""
    from dataclasses import replace

    import torch

    tower = engine.model.get_vision_tower()
    settings = tower.settings
    with torch.inference_mode():
        cut = engine.vision.prepare(image, settings)
        uniform = replace(settings, alpha=0.0, max_tokens=tower.num_patches)
        whole, tree = engine.vision.encode([engine.vision.prepare(image, uniform), cut])
    assert cut.leaves is not None
    return exchange_features(whole, tree, cut.leaves, tower.num_patches_per_side)


def exchange_features(whole: ImageTokens, tree: ImageTokens, leaves: Leaves, side: int) -> dict[str, ImageTokens]:
    """Builds tokens with CLIP's features at the leaves' places, the leaves' in CLIP's places, and mixtures.

    Args:
        whole: the uniform grid of `side` x `side` native cells.
        tree: the tokens of `leaves`, none of them larger than a native cell.
        leaves: of a square picture.
        side: native cells a side.

    Returns:
        The tokens by what a table calls them; a native cell is split if its leaves are smaller.
    """
    import torch

    from llava.model.vision.image_tokens import ImageTokens
    from qlip.language_positions import ImageSpan

    cell_side = leaves.grid[0] // side
    rows, cols = (leaves.boxes[:, :2] // cell_side).unbind(1)
    cell = rows * side + cols
    split = (leaves.sizes < cell_side)[:, None]
    clip, own = whole.features[cell], tree.features
    counted = torch.zeros(side * side).index_add(0, cell, torch.ones(len(cell)))
    means = torch.zeros_like(whole.features).index_add(0, cell, own) / counted[:, None]
    return {
        "CLIP's grid": whole,
        "the quadtree": tree,
        "its places, all features CLIP's": tree.with_features(clip),
        "its places, split cells' features CLIP's": tree.with_features(torch.where(split, clip, own)),
        "its places, whole cells' features CLIP's": tree.with_features(torch.where(split, own, clip)),
        "CLIP's places, its features averaged in a cell": ImageTokens(means, ImageSpan.sequential(len(means))),
    }


if __name__ == "__main__":
    sys.exit(main())
