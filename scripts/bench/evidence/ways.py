"""Ways of seeing: settings of the QLIP tower, CLIP's own tower, rivals; and a checkpoint that sees in any of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from llava.eval.run.answerer import Answerer, same_answer
from llava.eval.sweep.grid import own_settings
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.image_tokens import ImageTokens
from llava.serve.engine import ChatEngine
from qlip import Leaves, QLIPConfig, QLIPVisionModel
from qlip.language_positions import ImageSpan
from qlip.positions import native_side
from scripts.bench.evidence.rivals import merge_similar, prune_by_cls, raster_places
from scripts.bench.evidence.sets import QuestionSet

Rival = Literal["cls", "cls+merge", "tome"]
Prior = Literal["grid", "consistency"]


@dataclass(frozen=True)
class Way:
    """One way of seeing; the row of a table."""

    name: str
    settings: Mapping[str, Any] | None = field(default_factory=dict)
    """QLIP settings laid over the checkpoint's own; None is CLIP's own tower."""
    rival: Rival | None = None
    """Another token reduction in place of the quadtree; `settings` then say the budget and the positions."""
    prior: Prior | None = None
    """Which trained MLP prior to use, for interpolation "mlp"."""
    scrambled: bool = False
    """Positions as the QLIP authors' released code interpolates them."""

    def resolve(self, own: QLIPConfig) -> QLIPConfig | None:
        """The whole settings, laid over a checkpoint's own; None for CLIP. A prior's file is for `Subject` to name."""
        return None if self.settings is None else replace(own, **self.settings)

    def key(self, own: QLIPConfig) -> dict[str, Any]:
        """What tells this way from every other, whatever it is called: ready for JSON."""
        settings = self.resolve(own)
        return {
            "settings": None if settings is None else settings.to_dict(),
            "rival": self.rival,
            "prior": self.prior,
            "scrambled": self.scrambled,
        }


class Subject:
    """A checkpoint with both towers."""

    def __init__(self, model_path: str, priors: Mapping[str, Path], device: str, batch_tokens: int) -> None:
        self.model_path, self.priors, self.device = model_path, priors, device
        self.batch_tokens = batch_tokens
        self.clip: ChatEngine | None = None
        self.engine = self._load(True)
        self.own = own_settings(model_path)

    def _load(self, qlip: bool) -> ChatEngine:
        name = get_model_name_from_path(self.model_path)
        return ChatEngine(*load_pretrained_model(self.model_path, None, name, device=self.device, qlip=qlip))

    def settings(self, way: Way) -> QLIPConfig | None:
        """The whole settings of a way; None for CLIP."""
        settings = way.resolve(self.own)
        if settings is None or way.prior is None:
            return settings
        if way.prior not in self.priors:
            raise ValueError(f"the way {way.name!r} needs a prior: give --prior MODEL/{way.prior}=FILE")
        return replace(settings, interpolation="mlp", mlp=str(self.priors[way.prior]))

    def engine_of(self, way: Way) -> ChatEngine:
        """The engine that answers for a way: CLIP's tower is a model of its own, loaded at first need."""
        if way.settings is not None:
            return self.engine
        if self.clip is None:
            self.clip = self._load(False)
        return self.clip

    def examine(self, way: Way, questions: QuestionSet, chunk: int = 8) -> tuple[list[int], list[list[bool]]]:
        """Visual tokens of each picture, and which of its questions are answered right."""
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
        """The pictures' tokens, ready for the language model."""
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
    """A context in which a tower's positions come from `interpolate_scrambled`."""

    def positions(leaves: Leaves, settings: QLIPConfig | None = None) -> Tensor:
        return torch.cat([vision.cls_position, interpolate_scrambled(vision.position_table.float(), leaves)])

    with patch.object(vision, "positions", positions):
        yield


def interpolate_scrambled(table: Tensor, leaves: Leaves) -> Tensor:
    """float32 (N, D): positions as the QLIP authors' released code interpolates them, only for comparison.

    It reshapes the (n * n, D) table straight to (1, D, n, n), which mixes channels and places (DESIGN section 6). The
    same reshape on the way back undoes that where the grid is native, and nowhere else.
    """
    side, dim = native_side(table), table.shape[1]
    mixed = table.reshape(1, dim, side, side)
    resized = F.interpolate(mixed, leaves.grid, mode="bicubic", align_corners=True)
    cells = resized.reshape(-1, dim)
    row, col = leaves.centres.long().unbind(1)
    return cells[row * leaves.grid[1] + col]
