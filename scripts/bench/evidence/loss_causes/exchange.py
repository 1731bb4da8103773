"""Asks about pictures by features of CLIP's grid at the places of a quadtree, and the other way round."""

from __future__ import annotations

from dataclasses import replace

import torch
from PIL import Image

from llava.eval.run.answerer import Answerer, same_answer
from llava.model.vision.image_tokens import ImageTokens
from llava.serve.engine import ChatEngine
from qlip import Leaves
from qlip.language_positions import ImageSpan
from scripts.bench.evidence.answering.answer_log import marks
from scripts.bench.evidence.answering.answers import Cell
from scripts.bench.evidence.answering.sets import QuestionSet


def examine(engine: ChatEngine, questions: QuestionSet) -> dict[str, Cell]:
    """Asks every question in every way of `exchange_features`; gives the answers by way."""
    answerer = Answerer(engine, max_new_tokens=16, batch_tokens=4096)
    right: dict[str, list[list[bool]]] = {}
    counts: dict[str, list[int]] = {}
    for picture, asked in zip(questions.pictures, questions.questions, strict=True):
        views = encode_and_exchange(engine, picture)
        pairs = [(index, item.text) for index in range(len(views)) for item in asked]
        said = iter(answerer.answer(list(views.values()), pairs))
        for way, tokens in views.items():
            right.setdefault(way, []).append([same_answer(next(said), str(item.answer)) for item in asked])
            counts.setdefault(way, []).append(len(tokens.features))
    return {way: Cell([marks(questions, rows) | {"tokens": counts[way]}]) for way, rows in right.items()}


@torch.inference_mode()
def encode_and_exchange(engine: ChatEngine, image: Image.Image) -> dict[str, ImageTokens]:
    """Encodes a square image by CLIP's grid and by the shipped quadtree, and exchanges their features.

    Raises:
        ValueError: the model has no quadtree.
    """
    tower = engine.model.get_vision_tower()
    cut = engine.vision.prepare(image, tower.settings)
    if cut.leaves is None:
        raise ValueError("the model's tower has no quadtree")
    uniform = replace(tower.settings, alpha=0.0, max_tokens=tower.num_patches)
    whole, tree = engine.vision.encode([engine.vision.prepare(image, uniform), cut])
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
