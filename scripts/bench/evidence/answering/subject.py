"""A checkpoint that answers questions about images encoded in any of the ways of `variants.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from unittest.mock import patch

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from llava.eval.run.answerer import Answerer, same_answer
from llava.eval.run.generate import prompt_ids
from llava.eval.sweep.grid import read_own_settings
from llava.mm_utils import expand2square, get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.vision.encoding import encode_prepared
from llava.model.vision.image_tokens import ImageTokens
from llava.model.vision.prepared_image import PreparedImage, prepare_leaves
from llava.model.vision.question_budget import attention_on_images
from llava.serve.engine import ChatEngine
from qlip import Leaves, QLIPConfig, QLIPVisionModel
from qlip.language_positions import ImageSpan
from qlip.positions import native_side
from qlip.split_cells import find_split_cells
from scripts.bench.evidence.answering.sets import QuestionSet
from scripts.bench.evidence.answering.variants import Rival, Variant
from scripts.bench.evidence.rivals.crop import GENERAL, attend_to_image, choose_box, join_views, window_sides
from scripts.bench.evidence.rivals.reduction import (
    average_leaves,
    merge_similar,
    prune_by_cls,
    prune_outliers,
    raster_places,
)
from scripts.bench.flops import ModelCost

LONGEST = 40
"""Tokens of an answer at most; a listing has up to 37."""


@dataclass(frozen=True)
class EncodedPicture:
    """A picture as the language model gets it."""

    tokens: ImageTokens
    flops: int
    """Of tower, projector and earlier passes, without the prompt's prefill."""


@dataclass(frozen=True)
class Examined:
    """What came of a set of questions, one entry a picture."""

    tokens: list[float]
    """Visual tokens, the mean over the picture's questions."""
    flops: list[float]
    """Up to the answer's first token, the mean over the picture's questions."""
    right: list[list[bool]]
    """Whether each answer was right."""


class Subject:
    """A checkpoint with CLIP's and QLIP's tower."""

    def __init__(self, model_path: str, priors: Mapping[str, Path], device: str, batch_tokens: int) -> None:
        self.model_path, self.priors, self.device = model_path, priors, device
        self.batch_tokens = batch_tokens
        self.clip: ChatEngine | None = None
        self.engine = self._load(True)
        self.own = read_own_settings(model_path)
        self.cost = ModelCost.of(self.engine.model)

    def _load(self, qlip: bool) -> ChatEngine:
        name = get_model_name_from_path(self.model_path)
        return ChatEngine(*load_pretrained_model(self.model_path, None, name, device=self.device, qlip=qlip))

    def settings(self, way: Variant) -> QLIPConfig | None:
        """Merges a way's settings into the checkpoint's own; None for CLIP."""
        settings = way.resolve(self.own)
        if settings is None or way.prior is None:
            return settings
        if way.prior not in self.priors:
            raise ValueError(f"the way {way.name!r} needs a prior: give --prior MODEL/{way.prior}=FILE")
        return replace(settings, interpolation="mlp", mlp=str(self.priors[way.prior]))

    def engine_of(self, way: Variant) -> ChatEngine:
        """Picks the engine for a way; CLIP's is a second model, loaded on first use."""
        if way.settings is not None and way.rival != "crop":
            return self.engine
        if self.clip is None:
            self.clip = self._load(False)
        return self.clip

    def examine(self, way: Variant, questions: QuestionSet, chunk: int = 8) -> Examined:
        """Asks every question about its picture, encoded in one way."""
        engine = self.engine_of(way)
        answerer = Answerer(engine, max_new_tokens=LONGEST, batch_tokens=self.batch_tokens)
        examined = Examined([], [], [])
        for start in range(0, len(questions.pictures), chunk):
            rows = questions.questions[start : start + chunk]
            texts = [[item.text for item in row] for row in rows]
            encoded = self.encode_for_questions(way, questions.pictures[start : start + chunk], texts)
            flat = [one for same_picture in encoded for one in same_picture]
            asked = [text for row in texts for text in row]
            answers = iter(answerer.answer([one.tokens for one in flat], list(enumerate(asked))))
            examined.right.extend([same_answer(next(answers), str(item.answer)) for item in row] for row in rows)
            for same_picture, row in zip(encoded, texts, strict=True):
                counts = [len(one.tokens.features) for one in same_picture]
                work = [
                    one.flops + self.cost.prefill(count + len(prompt_ids(engine, text)) - 1)
                    for one, count, text in zip(same_picture, counts, row, strict=True)
                ]
                examined.tokens.append(mean(counts))
                examined.flops.append(mean(work))
        return examined

    @torch.inference_mode()
    def encode_for_questions(
        self, way: Variant, pictures: Sequence[Image.Image], questions: Sequence[Sequence[str]]
    ) -> list[list[EncodedPicture]]:
        """Encodes pictures for their questions: one encoding a question, for most ways the same for all."""
        settings = self.settings(way)
        asked = zip(pictures, questions, strict=True)
        if way.rival == "crop":
            return [self._crop(way, picture, row) for picture, row in asked]
        if settings is not None and settings.budget == "question":
            return [self._ask(settings, picture, row) for picture, row in asked]
        return [[one] * len(row) for one, row in zip(self.encode_pictures(way, pictures), questions, strict=True)]

    @torch.inference_mode()
    def encode_pictures(self, way: Variant, pictures: Sequence[Image.Image]) -> list[EncodedPicture]:
        """Encodes pictures as tokens for the language model, whatever the question."""
        engine, settings = self.engine_of(way), self.settings(way)
        if settings is None:
            tokens = engine.model.encode_tokens(engine.prepare_images(pictures))
            return [
                EncodedPicture(image, self.cost.encode(len(image.features), interpolated=False)) for image in tokens
            ]
        tower = engine.model.get_vision_tower()
        # A rival starts from the whole grid; a budget would make the image processor choose a smaller picture.
        tower.settings = replace(settings, max_tokens=None) if way.rival else settings
        if way.rival is not None:
            return [self._reduce(way.rival, image, settings) for image in engine.prepare_images(pictures)]
        thumbnail = tower.num_patches if settings.thumbnail else 0
        prepared = [engine.vision.prepare(picture, settings) for picture in pictures]
        with scrambled_positions(tower.vision_tower) if way.scrambled else nullcontext():
            tokens = engine.vision.encode(prepared)
        apart = self.cost.encode(thumbnail) if thumbnail else 0  # its tokens go through the tower apart
        costs = [
            self._encoding(len(image.features) - thumbnail, cut) for image, cut in zip(tokens, prepared, strict=True)
        ]
        return [EncodedPicture(image, apart + cost) for image, cost in zip(tokens, costs, strict=True)]

    def _encoding(self, count: int, image: PreparedImage) -> int:
        """Counts tower and projector over an image's leaves, with the split cells that the tower sees beside them."""
        kept, n = 0, self.engine.model.get_vision_tower().num_patches_per_side
        if image.settings is not None and image.settings.keep_split_cells and image.leaves is not None:
            kept = len(find_split_cells(image.leaves, image.settings, n).cells)
        return self.cost.tower.run(count + kept) + self.cost.project(count)

    def _reduce(self, rival: Rival, image: Tensor, settings: QLIPConfig) -> EncodedPicture:
        """Runs a rival on one image (C, H, W) at the size of its uniform grid."""
        tower = self.engine.model.get_vision_tower()
        vision, native = tower.vision_tower, tower.num_patches_per_side
        keep = settings.max_tokens or tower.num_patches
        span: ImageSpan | None = None
        if rival == "leaves":
            leaves = vision.partition(image, settings)
            kept, span = average_leaves(vision, image, leaves), vision.language_span(leaves, settings)
        elif rival == "tome":
            kept = merge_similar(vision, image, keep)
        elif rival == "prumerge":
            kept = prune_outliers(vision, image)
        else:
            kept = prune_by_cls(vision, image, keep, 0.0 if rival == "cls" else 10 / 64)
        count = len(kept.features)
        if span is None and settings.llm_positions == "sequential":
            span = ImageSpan.sequential(count)
        elif span is None:
            span = ImageSpan(count, raster_places(kept, native), native**2, None)
        features = self.engine.model.get_model().mm_projector(kept.features)
        return EncodedPicture(ImageTokens(features, span), kept.flops + self.cost.project(count))

    def _ask(self, settings: QLIPConfig, picture: Image.Image, questions: Sequence[str]) -> list[EncodedPicture]:
        """Encodes a picture by the tree that each question asks for."""
        model = self.engine.model
        prepared = prepare_leaves(picture, model.get_vision_tower().image_processor.cutter, settings)
        first = encode_prepared(model, [prepared])
        prompts = [prompt_ids(self.engine, text) for text in questions]
        weights = attention_on_images(model, prompts, [0] * len(prompts), [first] * len(prompts))
        refined = [prepared.refine(part) for (part,) in weights]
        views = encode_prepared(model, refined)
        count = len(first[0].features)
        encoded = []
        for view, prompt, cut in zip(views, prompts, refined, strict=True):
            text = len(prompt) - 1
            look = self.cost.encode(count) + self.cost.relate(text + count, text)
            encoded.append(EncodedPicture(view, look + self._encoding(len(view.features), cut)))
        return encoded

    def _crop(self, way: Variant, picture: Image.Image, questions: Sequence[str]) -> list[EncodedPicture]:
        """Encodes a picture and, for each question, the crop that its first pass finds."""
        engine, settings = self.engine_of(way), self.settings(way)
        model, processor = engine.model, engine.model.get_vision_tower().image_processor
        square = expand2square(picture, tuple(round(255 * value) for value in processor.image_mean))
        (whole,) = model.encode_tokens(engine.prepare_images([square]))
        n = model.get_vision_tower().num_patches_per_side
        layer = len(model.get_model().layers) // 2
        looks = [
            attend_to_image(model, prompt_ids(engine, text), whole, layer).view(n, n) for text in (GENERAL, *questions)
        ]
        sides = window_sides(n, model.get_vision_tower().config.image_size, square.width)
        boxes = [choose_box(look / looks[0], sides) for look in looks[1:]]
        cell = square.width / n
        crops = [square.crop([round(v * cell) for v in (b.col, b.row, b.col + b.side, b.row + b.side)]) for b in boxes]
        raster = settings is not None and settings.llm_positions == "raster"
        encoded = []
        general, *lengths = [len(prompt_ids(engine, text)) - 1 + n * n for text in (GENERAL, *questions)]
        views = model.encode_tokens(engine.prepare_images(crops))
        for view, box, length in zip(views, boxes, lengths, strict=True):
            first = sum(self.cost.prefill(size) + self.cost.attend(size) for size in (general, length))
            tokens = join_views(whole, view, box, n, raster)
            encoded.append(EncodedPicture(tokens, first + 2 * self.cost.encode(n * n, interpolated=False)))
        return encoded


@contextmanager
def scrambled_positions(vision: QLIPVisionModel) -> Iterator[None]:
    """Makes a tower interpolate its positions by `interpolate_scrambled`, as long as the context is open."""

    def positions(leaves: Leaves, settings: QLIPConfig | None = None) -> Tensor:
        return torch.cat([vision.cls_position, interpolate_scrambled(vision.position_table.float(), leaves)])

    with patch.object(vision, "positions", positions):
        yield


def interpolate_scrambled(table: Tensor, leaves: Leaves) -> Tensor:
    """Interpolates positions as the QLIP authors' released code does, only for comparison: float32 (N, D).

    It reshapes the (n * n, D) table straight to (1, D, n, n), which mixes channels and places. The same reshape on the
    way back undoes that where the grid is native, and nowhere else.
    """
    side, dim = native_side(table), table.shape[1]
    mixed = table.reshape(1, dim, side, side)
    resized = F.interpolate(mixed, leaves.grid, mode="bicubic", align_corners=True)
    cells = resized.reshape(-1, dim)
    row, col = leaves.centres.long().unbind(1)
    return cells[row * leaves.grid[1] + col]
