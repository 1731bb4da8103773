"""What the three stages of training learn: each is a loss as a function of the step.

Every random choice of a step comes from (seed, stage, step), so a run can stop and resume at any step.
`trainer.py` minimises the losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from playground.dataset import SceneBatch, SceneCache
from playground.model import WIDTH, DemoModel, sincos_2d
from playground.objects import COLOURS, SHAPES
from playground.packing import PackedQuestions, Packer, answer_logits, answers_right
from playground.questions import ASKED, KINDS, scene_questions

GRID = 8
CELLS = GRID * GRID
PAIRS = len(COLOURS) * len(SHAPES)
PLACE_WIDTH = 64


@dataclass(frozen=True)
class Surroundings:
    """What every stage needs besides its model."""

    scenes: SceneCache
    packer: Packer
    seed: int
    batch: int
    device: torch.device

    def draw(self, stage: int, step: int) -> tuple[SceneBatch, np.random.Generator]:
        """Draws the scenes of a step, and the generator for its other choices."""
        rng = np.random.default_rng((self.seed, stage, step))
        return self.scenes.batch(self.batch, rng), rng

    def questions(self, scenes: SceneBatch, rng: np.random.Generator) -> PackedQuestions:
        """Draws fresh questions about the scenes, and packs them."""
        size = self.scenes.spec.size
        return self.packer.pack([scene_questions(row, size, rng, ASKED) for row in scenes.objects]).to(self.device)


class Symbols(nn.Module):
    """Image tokens without an image: the sum of what is in a cell and where the cell is."""

    def __init__(self) -> None:
        super().__init__()
        self.colour = nn.Embedding(1 + len(COLOURS), WIDTH)
        self.shape = nn.Embedding(1 + len(SHAPES), WIDTH)
        self.place = nn.Linear(PLACE_WIDTH, WIDTH)
        nn.init.normal_(self.colour.weight, std=0.7)
        nn.init.normal_(self.shape.weight, std=0.7)
        self.register_buffer("codes", sincos_2d(GRID, PLACE_WIDTH), persistent=False)

    def forward(self, labels: Tensor, cells: Tensor) -> Tensor:
        """Maps labels and cells, int64 (B, N), to tokens (B, N, D)."""
        colour, shape = split_labels(labels)
        return self.colour(colour) + self.shape(shape) + self.place(self.codes[cells])


class Readout(nn.Module):
    """Reads colour and shape from patch features, and the colour-shape pairs present from the pooled [CLS]."""

    def __init__(self) -> None:
        super().__init__()
        self.colour = nn.Linear(WIDTH, 1 + len(COLOURS))
        self.shape = nn.Linear(WIDTH, 1 + len(SHAPES))
        self.pairs = nn.Linear(WIDTH, PAIRS)

    def loss(self, features: Tensor, pooled: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes cross entropies of the labels int64 (B, N), and accuracies of object cells and present pairs."""
        colour, shape = split_labels(labels)
        said_colour, said_shape = self.colour(features), self.shape(features)
        present = F.one_hot(labels, 1 + PAIRS).amax(1)[:, 1:].float()
        said_pairs = self.pairs(pooled)
        dense = F.cross_entropy(said_colour.flatten(0, 1), colour.flatten())
        dense = dense + F.cross_entropy(said_shape.flatten(0, 1), shape.flatten())
        # The sum over pairs, scaled to weigh about as much as one dense term.
        summary = F.binary_cross_entropy_with_logits(said_pairs, present) * 5
        right = (said_colour.argmax(-1) == colour) & (said_shape.argmax(-1) == shape)
        found = (said_pairs > 0) & (present > 0)
        return dense + summary, {
            "cells": right[labels > 0].float().mean(),
            "pairs": found.sum() / present.sum(),
            "dense": dense.detach(),
        }


def split_labels(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Splits cell labels into colour and shape, each 0 for background."""
    pair = (labels - 1).clamp(min=0)
    inside = labels > 0
    return (pair // len(SHAPES) + 1) * inside, (pair % len(SHAPES) + 1) * inside


def normalise(images: Tensor) -> Tensor:
    """Normalises uint8 (B, H, W, 3) to float (B, 3, H, W) as CLIP's image processor does it."""
    pixels = images.permute(0, 3, 1, 2).float() / 255
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (pixels - mean) / std


def images_of(scenes: SceneBatch, device: torch.device) -> Tensor:
    """Copies the scenes' images to a device: uint8 (B, H, W, 3)."""
    return torch.from_numpy(scenes.images).to(device)


def cell_labels_of(scenes: SceneBatch, device: torch.device) -> Tensor:
    """Copies the scenes' cell labels to a device: int64 (B, cells)."""
    return torch.from_numpy(scenes.labels).to(device).long().flatten(1)


def answer_loss(logits: Tensor, targets: Tensor, packed: PackedQuestions) -> tuple[Tensor, dict[str, Tensor]]:
    """Computes the cross entropy of the answers, and the share of right answers by kind."""
    right, kinds = answers_right(logits.detach(), targets, packed)
    shares = {kind: right[kinds == number].mean() for number, kind in enumerate(KINDS) if kind in ASKED}
    return F.cross_entropy(logits, targets), shares


class DecoderStage(nn.Module):
    """The decoder alone learns to read symbolic tokens: some cells of the scene, with gaps in their positions."""

    number = 1
    furthest = 512

    def __init__(self, model: DemoModel, symbols: Symbols, around: Surroundings) -> None:
        super().__init__()
        self.decoder, self.symbols, self.around = model.decoder, symbols, around

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss of one step; `progress` is the share of the stage that is done."""
        around = self.around
        scenes, rng = around.draw(self.number, step)
        labels = cell_labels_of(scenes, around.device)
        count = int(rng.integers(20, 33))
        lot = 2.0 * (labels > 0) + torch.from_numpy(rng.random(labels.shape)).to(around.device)
        cells = lot.argsort(dim=1, descending=True)[:, :count].sort(dim=1).values  # objects first, then background
        tokens = self.symbols(labels.gather(1, cells), cells)
        noise = torch.from_numpy(rng.standard_normal(tokens.shape, dtype=np.float32)).to(around.device)
        span = int(np.exp(rng.uniform(np.log(count), np.log(self.furthest))))
        places = torch.from_numpy(np.sort(rng.choice(span, count, replace=False)))
        packed = around.questions(scenes, rng)
        head = around.packer.head.to(around.device)
        spoken = answer_logits(self.decoder, head, tokens + 0.1 * noise, places, span, packed)
        return answer_loss(*spoken, packed)


class TowerStage(nn.Module):
    """The tower learns what each cell shows; its [CLS] learns which colour-shape pairs the scene holds."""

    number = 2

    def __init__(self, model: DemoModel, readout: Readout, around: Surroundings) -> None:
        super().__init__()
        self.tower, self.readout, self.around = model.tower, readout, around
        self._encode = model.encode_images

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss of one step; `progress` is the share of the stage that is done."""
        scenes, _ = self.around.draw(self.number, step)
        features, pooled = self._encode(normalise(images_of(scenes, self.around.device)))
        return self.readout.loss(features, pooled, cell_labels_of(scenes, self.around.device))


class JointStage(nn.Module):
    """All parts learn the questions; at first the projector is drawn towards the symbols the decoder knows."""

    number = 3
    alignment = 1.5
    aligned_share = 0.3

    def __init__(self, model: DemoModel, symbols: Symbols, readout: Readout, around: Surroundings) -> None:
        super().__init__()
        self.model, self.readout, self.around = model, readout, around
        self.register_buffer("cells", torch.arange(CELLS), persistent=False)
        self._symbols = (symbols,)  # in a tuple: known here, but not trained here

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss of one step; `progress` is the share of the stage that is done."""
        around = self.around
        scenes, rng = around.draw(self.number, step)
        labels = cell_labels_of(scenes, around.device)
        features, pooled = self.model.encode_images(normalise(images_of(scenes, around.device)))
        tokens = self.model.projector(features)
        packed = around.questions(scenes, rng)
        head = around.packer.head.to(around.device)
        spoken, report = answer_loss(
            *answer_logits(self.model.decoder, head, tokens, self.cells, CELLS, packed), packed
        )
        seen, seen_report = self.readout.loss(features, pooled, labels)
        weight = self.alignment * max(0.0, 1 - progress / self.aligned_share)
        total = spoken + seen
        if weight > 0:
            total = total + weight * self._misalignment(tokens, labels)
        return total, report | seen_report

    def _misalignment(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Computes tokens' squared distance from symbols, in units of their variance; object cells count five times."""
        with torch.no_grad():
            wanted = self._symbols[0](labels, self.cells.expand_as(labels))
        weight = 1 + 4 * (labels > 0).float()
        distance = (tokens - wanted).square().mean(-1)
        return (distance * weight).sum() / weight.sum() / wanted.var()
