"""Finds whether a question splits the right cells: `python -m scripts.bench.evidence.question.places`.

Asks for the colour and the shape of objects whose place is known, as `question` does, and notes whether the object's
cell is one of those that the question splits, in each layer whose attention could be read, and whether the answer is
right. Fills the last table of docs/results/question.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llava.command import parse_and_run
from playground.objects import SceneObject
from playground.questions import Question
from scripts.bench.evidence.answering.trees import STRUCTURE
from scripts.bench.evidence.question.flags import make_parser
from scripts.markdown_table import table_head, table_row

if TYPE_CHECKING:
    from llava.serve.engine import ChatEngine
    from playground.scenes import Scene
    from qlip.quadtree import Leaves
    from qlip.question import QuestionCut

SHARES = (0.05, 0.1, 0.3)
"""Shares of the unsplit image's tokens that a question may add: one, two and six splits of 64 cells."""
KINDS = ("colour", "shape")
"""Kinds of questions about one object."""


@dataclass(frozen=True)
class Asked:
    """One question, answered from the tree that it splits."""

    found: Sequence[bool]
    """Whether the object's cell is split, by the layer whose attention decides."""
    right: bool
    """Whether the answer is, where the middle layer decides."""
    unsplit: bool
    """Whether the answer by CLIP's view is."""


def asked_object(question: Question, objects: Iterable[SceneObject]) -> SceneObject:
    """Finds the object that a question of `KINDS` is about: no other has the shape, or the colour, that it names."""
    words = question.text.rstrip("?").split()
    (found,) = (item for item in objects if (item.shape if question.kind == "colour" else item.colour) in words)
    return found


def root_of(question: QuestionCut, place: tuple[float, float], size: tuple[int, int]) -> int:
    """Finds the root that holds a place, (row, column) in pixels of an image of (height, width) `size`."""
    roots, grid = question.roots, question.first.leaves.grid
    row, col = (int(at * cells / side) for at, cells, side in zip(place, grid, size, strict=True))
    across = -(-roots.cols // 2**roots.level)
    return ((row - roots.top) >> roots.level) * across + ((col - roots.left) >> roots.level)


def is_split(tree: Leaves, root: int, question: QuestionCut) -> bool:
    """Finds whether a tree splits a root."""
    side, across = 2**question.roots.level, -(-question.roots.cols // 2**question.roots.level)
    row, col = question.roots.top + root // across * side, question.roots.left + root % across * side
    return int(tree.sizes[tree.token_map()[row, col]]) < side


def ask(engine: ChatEngine, made: Scene, asked: Sequence[Question], share: float) -> list[Asked]:
    """Asks questions of `KINDS` about a scene, each adding a share of CLIP's tokens; none where nothing can split."""
    import torch
    from PIL import Image

    from llava.eval.run.answerer import Answerer, same_answer
    from llava.model.vision.encoding import encode_prepared
    from llava.model.vision.prepared_image import prepare_leaves
    from qlip.attention import find_layers, middle_layer
    from scripts.bench.evidence.question.measure import attend

    tower, trunk = engine.model.get_vision_tower(), engine.model.get_model()
    settings = replace(tower.settings, budget="question", question_share=share, score_share=0.0, max_tokens=None)
    prepared = prepare_leaves(Image.fromarray(made.image), tower.image_processor.cutter, settings)
    if prepared.question is None:
        return []
    roots = [
        root_of(prepared.question, asked_object(item, made.objects).centre, made.image.shape[:2]) for item in asked
    ]
    found, answering = [], []
    with torch.inference_mode():
        tokens = encode_prepared(engine.model, [prepared])
        for layer in range(len(find_layers(trunk))):
            weights = attend(engine, tokens, asked, layer)
            trees = [prepared.question.choose_leaves(prepared.question.relevance(own)) for own in weights]
            found.append([is_split(tree, root, prepared.question) for tree, root in zip(trees, roots, strict=True)])
            if layer == middle_layer(trunk):
                answering = encode_prepared(engine.model, [prepared.refine(own) for own in weights])
        texts = [*enumerate(item.text for item in asked), *((len(asked), item.text) for item in asked)]
        said = Answerer(engine, max_new_tokens=40).answer([*answering, *tokens], texts)
    right = [same_answer(text, item.answer) for text, item in zip(said, [*asked, *asked], strict=True)]
    answers = zip(zip(*found, strict=True), right[: len(asked)], right[len(asked) :], strict=True)
    return [Asked(layers, good, unsplit) for layers, good, unsplit in answers]


def row(name: str, added: float, answers: Sequence[Asked], middle: int) -> str:
    """Formats a row of the table: shares in %."""
    shares = [share(layer) for layer in zip(*(answer.found for answer in answers), strict=True)]
    for known in (True, False):
        those = [answer for answer in answers if answer.found[middle] == known]
        shares += [share([answer.right for answer in those]), share([answer.unsplit for answer in those])]
    return table_row([name, f"{added:.2f}", *shares, share([answer.right for answer in answers])])


def share(marks: Sequence[bool]) -> str:
    """Formats the share of what is true in %."""
    return f"{100 * sum(marks) / len(marks):.1f}" if marks else "none"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = make_parser("places", "Find whether a question splits the right cells.")
    return parse_and_run(parser, command, argv)


def command(options: argparse.Namespace) -> None:
    """Asks at every size, prints the table and fills the page."""
    import torch

    from llava.model.builder import load_pretrained_model
    from llava.serve.engine import ChatEngine
    from qlip.attention import find_layers, middle_layer
    from scripts.bench.evidence.pages.fill import fill_page
    from scripts.bench.evidence.question.measure import draw_scenes

    torch.set_num_threads(options.threads)
    engines = [ChatEngine(*load_pretrained_model(path, device="cpu", qlip=STRUCTURE)) for path in options.model]
    trunk = engines[0].model.get_model()
    layers = [f"found by layer {layer}" for layer in range(len(find_layers(trunk)))]
    right = ["right if found", "these by CLIP's view", "right if not", "these by CLIP's view", "right"]
    lines = [table_head(["objects", "question_share", *layers, *right])]
    for low, high in options.sizes:
        scenes = list(draw_scenes((low, high), options.seed, options.scenes, options.photos))
        for added in SHARES:
            answers = []
            for engine in engines:
                for made, asked in scenes:
                    answers += ask(engine, made, [item for item in asked if item.kind in KINDS], added)
            if answers:
                lines.append(row(f"{low}-{high} px", added, answers, middle_layer(trunk)))
    for engine in engines:
        engine.close()
    print("\n".join(lines))
    if options.page.exists():
        fill_page(options.page, {"question: places": "\n".join(lines)}, partly=True)


if __name__ == "__main__":
    sys.exit(main())
