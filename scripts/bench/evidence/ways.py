"""A checkpoint that answers questions about images encoded in any of the ways of `settings.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from llava.eval.run.answerer import Answerer, same_answer
from llava.eval.sweep.grid import read_own_settings
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.image_tokens import ImageTokens
from llava.serve.engine import ChatEngine
from qlip import Leaves, QLIPConfig, QLIPVisionModel
from qlip.language_positions import ImageSpan
from qlip.positions import native_side
from scripts.bench.evidence.rivals import merge_similar, prune_by_cls, raster_places
from scripts.bench.evidence.sets import QuestionSet
from scripts.bench.evidence.settings import Rival, Way


class Subject:
    """A checkpoint with CLIP's and QLIP's tower."""

    def __init__(self, model_path: str, priors: Mapping[str, Path], device: str, batch_tokens: int) -> None:
        self.model_path, self.priors, self.device = model_path, priors, device
        self.batch_tokens = batch_tokens
        self.clip: ChatEngine | None = None
        self.engine = self._load(True)
        self.own = read_own_settings(model_path)

    def _load(self, qlip: bool) -> ChatEngine:
        name = get_model_name_from_path(self.model_path)
        return ChatEngine(*load_pretrained_model(self.model_path, None, name, device=self.device, qlip=qlip))

    def settings(self, way: Way) -> QLIPConfig | None:
        """Merges a way's settings into the checkpoint's own; None for CLIP."""
        settings = way.resolve(self.own)
        if settings is None or way.prior is None:
            return settings
        if way.prior not in self.priors:
            raise ValueError(f"the way {way.name!r} needs a prior: give --prior MODEL/{way.prior}=FILE")
        return replace(settings, interpolation="mlp", mlp=str(self.priors[way.prior]))

    def engine_of(self, way: Way) -> ChatEngine:
        """Picks the engine for a way; CLIP's is a second model, loaded on first use."""
        if way.settings is not None:
            return self.engine
        if self.clip is None:
            self.clip = self._load(False)
        return self.clip

    def examine(self, way: Way, questions: QuestionSet, chunk: int = 8) -> tuple[list[int], list[list[bool]]]:
        """Counts the visual tokens of each picture and judges the answer to each of its questions."""
        answerer = Answerer(self.engine_of(way), max_new_tokens=16, batch_tokens=self.batch_tokens)
        tokens, right = [], []
        for start in range(0, len(questions.pictures), chunk):
            seen = self.see(way, questions.pictures[start : start + chunk])
            tokens += [len(picture.features) for picture in seen]
            rows = questions.questions[start : start + chunk]
            said = answerer.answer(seen, [(i, item.text) for i, row in enumerate(rows) for item in row])
            answers = iter(said)
            right += [[same_answer(next(answers), str(item.answer)) for item in row] for row in rows]
        return tokens, right

    @torch.inference_mode()
    def see(self, way: Way, pictures: Sequence[Image.Image]) -> list[ImageTokens]:
        """Encodes pictures as tokens for the language model."""
        engine, settings = self.engine_of(way), self.settings(way)
        if settings is None:
            return engine.model.encode_tokens(engine.prepare_images(pictures))
        tower = engine.model.get_vision_tower()
        # A rival starts from the whole grid; a budget would make the image processor choose a smaller picture.
        tower.settings = replace(settings, max_tokens=None) if way.rival else settings
        pixels = engine.prepare_images(pictures)
        if way.rival is not None:
            return [self._reduce(way.rival, image, settings) for image in pixels]
        if way.scrambled:
            with scrambled_positions(tower.vision_tower):
                return engine.model.encode_tokens(pixels)
        return engine.model.encode_tokens(pixels)

    def _reduce(self, rival: Rival, image: Tensor, settings: QLIPConfig) -> ImageTokens:
        tower = self.engine.model.get_vision_tower()
        vision, native = tower.vision_tower, tower.num_patches_per_side
        keep = settings.max_tokens or tower.num_patches
        if rival == "tome":
            kept = merge_similar(vision, image, keep)
        else:
            kept = prune_by_cls(vision, image, keep, 0.0 if rival == "cls" else 10 / 64)
        features = self.engine.model.get_model().mm_projector(kept.features)
        if settings.llm_positions == "sequential":
            return ImageTokens(features, ImageSpan.sequential(len(features)))
        return ImageTokens(features, ImageSpan(len(features), raster_places(kept, native), native**2, None))


@contextmanager
def scrambled_positions(vision: QLIPVisionModel) -> Iterator[None]:
    """Makes a tower interpolate its positions by `interpolate_scrambled`, as long as the context is open."""

    def positions(leaves: Leaves, settings: QLIPConfig | None = None) -> Tensor:
        return torch.cat([vision.cls_position, interpolate_scrambled(vision.position_table.float(), leaves)])

    with patch.object(vision, "positions", positions):
        yield


def interpolate_scrambled(table: Tensor, leaves: Leaves) -> Tensor:
    """Interpolates positions as the QLIP authors' released code does, only for comparison: float32 (N, D).

    It reshapes the (n * n, D) table straight to (1, D, n, n), which mixes channels and places (DESIGN section 6). The
    same reshape on the way back undoes that where the grid is native, and nowhere else.
    """
    side, dim = native_side(table), table.shape[1]
    mixed = table.reshape(1, dim, side, side)
    resized = F.interpolate(mixed, leaves.grid, mode="bicubic", align_corners=True)
    cells = resized.reshape(-1, dim)
    row, col = leaves.centres.long().unbind(1)
    return cells[row * leaves.grid[1] + col]
