"""The first two stages of the recipe `llava`: a language model from text alone, a tower from pictures with captions.

They share nothing. As Vicuna and CLIP, neither knows the other: the projector that joins them is trained later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from playground.corpus import Corpus, TextBatch
from playground.model import DemoModel
from playground.objects import COLOURS, SHAPES
from playground.picture_cache import PictureCache
from playground.prefetch import Prefetcher
from playground.scenes import SIGN_LABEL
from playground.schedules import Schedule
from playground.signs import CHARACTERS, LONGEST_TEXT
from playground.stages import normalise, split_labels

DESCRIPTION_WEIGHT = 0.1
"""Weight in the loss of tokens that are not answers: most of them are random, and cannot be predicted."""
REPETITIONS_UNTIL, REPETITIONS_AFTER = 0.1, 0.1
"""Share of the stage that sees repetitions alone, and the share of repetitions thereafter."""
REPETITION_STEPS = 300
"""Fewest steps that see repetitions alone, however short the stage.

To find an answer in a text takes heads that find where a token has occurred before. Repetitions teach them; questions
alone left the answers guesses for 2000 steps."""
FAR = 256
"""Position from which on the log counts answers as far."""
CAPTION_TOKENS = 64
OBJECT_WEIGHT = 4.0
"""Weight in the tower's loss of cells that show something, against those of the ground, which are most."""
READING_WEIGHT = 0.2
"""Weight in the tower's loss of reading signs, which is learnt last and would drown the rest."""


@dataclass(frozen=True)
class Sources:
    """What both stages draw their batches from."""

    corpus: Corpus
    pictures: PictureCache | None
    """None if the tower is not trained."""
    tokenizer: PreTrainedTokenizerBase
    seed: int
    device: torch.device
    workers: int = 0
    """Processes that draw batches ahead."""

    def generator(self, stage: int, step: int) -> np.random.Generator:
        """Builds the generator of a step's choices."""
        return np.random.default_rng((self.seed, stage, step))


class LanguageStage(nn.Module):
    """The language model learns to continue text: the loss of every token, in windows of up to 512."""

    number = 11

    def __init__(self, model: DemoModel, sources: Sources, schedule: Schedule) -> None:
        super().__init__()
        self.decoder, self.sources, self.schedule = model.decoder, sources, schedule
        self._batches = Prefetcher(self.draw, schedule.steps, sources.workers)

    def draw(self, step: int) -> TextBatch:
        """Draws the windows of a step."""
        alone = max(REPETITION_STEPS, REPETITIONS_UNTIL * self.schedule.steps)
        repetitions = 1.0 if step < alone else REPETITIONS_AFTER
        return self.sources.corpus.batch(self.schedule.batch, self.sources.generator(self.number, step), repetitions)

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss of one step; `progress` is the share of the stage that is done."""
        batch = self._batches.take(step)
        ids, answers, documents, positions = (torch.from_numpy(array).to(self.sources.device) for array in batch)
        mask = document_mask(documents)
        logits = self.decoder(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, :-1]
        targets, answers, positions = ids[:, 1:], answers[:, 1:], positions[:, 1:]
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        # A document's first token, <s>, follows from nothing: the one in front of it is another document's.
        weights = torch.where(answers, 1.0, DESCRIPTION_WEIGHT) * (positions > 0)
        right = (logits.detach().argmax(-1) == targets).float()
        report = {"answers": right[answers].mean(), "answer_loss": losses.detach()[answers].mean()}
        far = answers & (positions >= FAR)
        if far.any():
            report["far"] = right[far].mean()
        return (losses * weights).sum() / weights.sum(), report


def document_mask(documents: Tensor) -> Tensor:
    """Builds the additive attention mask of packed documents: each token sees its own document up to itself.

    Args:
        documents: int64 (B, T), the number of each token's document.

    Returns:
        float32 (B, 1, T, T): 0 where a key is seen.
    """
    length = documents.shape[1]
    seen = documents[:, :, None] == documents[:, None]
    seen = seen & torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, torch.finfo(torch.float32).min)[:, None]


class CaptionEncoder(nn.Module):
    """Captions to unit vectors: two layers over their tokens, and the mean."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.places = nn.Embedding(CAPTION_TOKENS, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encodes ids and mask, int64 (B, T), as float (B, D)."""
        hidden = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        hidden = self.layers(hidden, src_key_padding_mask=mask == 0)
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(self.out(pooled), dim=-1)


class CaptionedPictures(NamedTuple):
    """Pictures with their captions as tokens, else as in `PictureBatch`."""

    images: Tensor
    labels: Tensor
    texts: Tensor
    characters: Tensor
    ids: Tensor
    """int64 (B, T)."""
    mask: Tensor
    """int64 (B, T): 0 beyond a caption."""

    def to(self, device: torch.device) -> CaptionedPictures:
        """Copies the tensors to another device."""
        return CaptionedPictures(*(tensor.to(device) for tensor in self))


class VisionStage(nn.Module):
    """The tower learns from captions, by contrast, what [CLS] should say, and what each cell shows.

    A cell of a sign names the character that it shows and all of the sign's characters, in order; those of a sign that
    is too small name none.
    """

    number = 12

    def __init__(self, model: DemoModel, sources: Sources, schedule: Schedule) -> None:
        super().__init__()
        width = model.tower.config.hidden_size
        self.tower, self.sources, self.schedule = model.tower, sources, schedule
        self._batches = Prefetcher(self.draw, schedule.steps, sources.workers)
        self.captions = CaptionEncoder(len(sources.tokenizer), width)
        self.project = nn.Linear(width, width, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.66))  # CLIP's: log(1 / 0.07)
        self.colour = nn.Linear(width, 1 + len(COLOURS))
        self.shape = nn.Linear(width, 2 + len(SHAPES))
        self.character = nn.Linear(width, 1 + len(CHARACTERS))
        self.text = nn.Linear(width, LONGEST_TEXT * (1 + len(CHARACTERS)))
        self._encode = model.encode_images

    def draw(self, step: int) -> CaptionedPictures:
        """Draws the pictures of a step."""
        if self.sources.pictures is None:
            raise ValueError("the stage 'vision' needs pictures; none were drawn")
        drawn = self.sources.pictures.batch(self.schedule.batch, self.sources.generator(self.number, step))
        encoded = self.sources.tokenizer(
            drawn.captions, padding=True, truncation=True, max_length=CAPTION_TOKENS, return_tensors="pt"
        )
        arrays = (drawn.images, drawn.labels, drawn.texts, drawn.characters)
        return CaptionedPictures(*map(torch.from_numpy, arrays), encoded.input_ids, encoded.attention_mask)

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss of one step; `progress` is the share of the stage that is done."""
        batch = self._batches.take(step).to(self.sources.device)
        features, pooled = self._encode(normalise(batch.images))
        dense, seen = self._dense_loss(features, batch)
        contrast, matched = self._contrast(pooled, batch)
        return dense + 0.5 * contrast, {"dense": dense.detach(), "contrast": contrast.detach(), **seen, **matched}

    def _dense_loss(self, features: Tensor, batch: CaptionedPictures) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes cross entropies of each cell's colour and shape, and of what is written on signs."""
        labels = batch.labels.long().flatten(1)
        colour, shape = split_cells(labels)
        said_colour, said_shape = self.colour(features), self.shape(features)
        loss = cell_loss(said_colour, colour, labels > 0) + cell_loss(said_shape, shape, labels > 0)
        right = (said_colour.argmax(-1) == colour) & (said_shape.argmax(-1) == shape)
        report = {"cells": right[labels > 0].float().mean()}
        on_sign = labels == SIGN_LABEL
        if on_sign.any():
            reading, read = self._reading_loss(features[on_sign], batch, on_sign)
            loss, report = loss + READING_WEIGHT * reading, report | read
        return loss, report

    def _reading_loss(
        self, features: Tensor, batch: CaptionedPictures, on_sign: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes cross entropies of the character in each of the S cells of signs, and of the sign's whole text."""
        texts, here = batch.texts.long(), batch.characters.long().flatten(1)[on_sign]
        wanted = texts[:, None].expand(-1, on_sign.shape[1], -1)[on_sign]  # (S, LONGEST_TEXT)
        said_here = self.character(features)
        said = self.text(features).view(len(wanted), LONGEST_TEXT, -1)
        loss = F.cross_entropy(said_here, here) + F.cross_entropy(said.flatten(0, 1), wanted.flatten())
        report = {}
        if (shown := here > 0).any():
            report["characters"] = (said_here.argmax(-1) == here)[shown].float().mean()
            report["read"] = (said.argmax(-1) == wanted).all(-1)[wanted.any(-1)].float().mean()
        return loss, report

    def _contrast(self, pooled: Tensor, batch: CaptionedPictures) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes CLIP's loss: each picture finds its caption among the batch's, and each caption its picture."""
        texts = self.captions(batch.ids, batch.mask)
        pictures = F.normalize(self.project(pooled), dim=-1)
        logits = self.scale.clamp(max=4.6).exp() * pictures @ texts.T
        own = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        return loss, {"matched": (logits.argmax(1) == own).float().mean()}


def cell_loss(logits: Tensor, wanted: Tensor, shows: Tensor) -> Tensor:
    """Computes the mean cross entropy of cells, in which those that show something weigh `OBJECT_WEIGHT` times as much.

    Args:
        logits: float (B, N, classes).
        wanted: int64 (B, N).
        shows: bool (B, N).
    """
    weights = torch.where(shows, OBJECT_WEIGHT, 1.0)
    losses = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(weights)
    return (losses * weights).sum() / weights.sum()


def split_cells(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Splits cell labels into colour and shape, each 0 for background; a sign is the last shape, without colour."""
    sign = labels == SIGN_LABEL
    colour, shape = split_labels(labels.masked_fill(sign, 0))
    return colour, shape.masked_fill(sign, 1 + len(SHAPES))
