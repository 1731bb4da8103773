"""Asks what signs say, by every tree and by every exchange between two of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from llava.eval.run.answerer import Answerer, same_answer
from llava.model.vision.image_tokens import ImageTokens
from llava.model.vision.prepared_image import PreparedImage, prepare_cut
from llava.serve.engine import ChatEngine
from playground.objects import Sign
from scripts.bench.evidence.answering.sets import draw_scene, draw_set
from scripts.bench.evidence.reading.cuts import find_text, share_at_full_size, split_area, text_area
from scripts.bench.evidence.reading.exchange import exchange
from scripts.bench.evidence.reading.trees import EXCHANGES, FULL, SPARSE, TREES, Reading


@dataclass(frozen=True)
class Cut:
    """A picture as one tree cuts it."""

    prepared: PreparedImage
    text: Tensor
    """bool (N,): which leaves overlap the sign's text."""
    seen: float
    """Share of the text's area in leaves of one cell."""


def read_signs(engine: ChatEngine, name: str, split: str, scenes: int) -> dict[str, list[Reading]]:
    """Asks what each sign of a set says; gives the readings by the names of `TREES` and `EXCHANGES`."""
    answerer = Answerer(engine, max_new_tokens=16)
    questions = draw_set(name, split, scenes)
    found: dict[str, list[Reading]] = {way: [] for way in (*TREES, *EXCHANGES)}
    for index, (picture, asked) in enumerate(zip(questions.pictures, questions.questions, strict=True)):
        (item,) = (item for item in asked if item.category == "sign")
        _, made = draw_scene(name, split, index)
        if made.sign is None:
            raise ValueError(f"scene {index} of {name} has no sign")
        cuts = cut_picture(engine, picture, made.sign)
        views = encode_views(engine, cuts)
        said = answerer.answer(list(views.values()), [(number, item.text) for number in range(len(views))])
        for (way, tokens), text in zip(views.items(), said, strict=True):
            seen = cuts[way].seen if way in cuts else 1.0
            found[way].append(Reading(len(tokens.features), seen, same_answer(text, str(item.answer))))
    return found


def cut_picture(engine: ChatEngine, picture: Image.Image, sign: Sign) -> dict[str, Cut]:
    """Cuts a picture by each of `TREES`."""
    tower = engine.model.get_vision_tower()
    cutter = tower.image_processor.cutter
    cut, cuts = cutter.make_preparer(picture), {}
    for name, tree in TREES.items():
        settings = replace(tower.settings, **tree.settings)
        first = cut(settings)
        area = text_area(sign, (picture.height, picture.width), first.leaves.grid)
        leaves = split_area(first.leaves, area) if tree.splits_text else first.leaves
        one = prepare_cut(partial(cut, leaves=leaves), cutter, settings)
        cuts[name] = Cut(one, find_text(leaves, area), share_at_full_size(leaves, area))
    return cuts


@torch.inference_mode()
def encode_views(engine: ChatEngine, cuts: Mapping[str, Cut]) -> dict[str, ImageTokens]:
    """Encodes a picture by each of its cuts, and exchanges the text's tokens between two of them."""
    tokens: Sequence[ImageTokens] = engine.vision.encode([cut.prepared for cut in cuts.values()])
    views = dict(zip(cuts, tokens, strict=True))
    return views | exchange(views[FULL], cuts[FULL].text, views[SPARSE], cuts[SPARSE].text)
