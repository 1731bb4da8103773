"""LLaVA's training written out by hand over transformers' LlavaForConditionalGeneration: the oracle of our own losses.

One-turn conversations in the format of Vicuna 1.5, tokenized by SentencePiece itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from transformers import CLIPImageProcessorPil

from tests.llava.checkpoints import IMAGE_TOKEN, VISION, transformers_model

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
BOS, EOS, IGNORED = 1, 2, -100
SIDE = VISION["image_size"]
TOKENS = (SIDE // VISION["patch_size"]) ** 2  # of an image
COLOURS = ("red", "blue", "green", "grey", "black")
SIZES = ((150, 100), (SIDE, SIDE), (90, 140), (64, 200))


def write_data(folder: Path, kinds: str, native: bool = False) -> list[dict[str, Any]]:
    """Writes samples as LLaVA's JSON with PNG images and reads them back: "i" is one with an image, "t" text only.

    Answers have 1 to 12 words. With `native`, images have the tower's own size.
    """
    random = np.random.default_rng(4)
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for number, kind in enumerate(kinds):
        words = random.choice(COLOURS, random.integers(1, 13))
        sample: dict[str, Any] = {"id": str(number)}
        question = f"what is in the {random.choice(COLOURS)} circle?"
        if kind == "i":
            width, height = (SIDE, SIDE) if native else SIZES[number % len(SIZES)]
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            sample["image"] = f"{number}.png"
            question = f"<image>\n{question}"
        answer = "a " + " and a ".join(words)
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        samples.append({**sample, "conversations": turns})
    (folder / "data.json").write_text(json.dumps(samples))
    return samples


@dataclass(frozen=True)
class Loop:
    """A training loop over AdamW."""

    rate: float = 1e-3
    schedule: str = "constant"
    """"constant", "linear" or "cosine"."""
    warmup: int = 0
    """Steps in which the learning rate rises from 0."""
    decay: float = 0.0
    """Weight decay of matrices."""
    projector_rate: float | None = None
    projector_only: bool = False
    aspect: str = "square"
    """"square" crops an image, "pad" pads it to a square of the processor's mean colour."""

    def losses(self, checkpoint: Path, folder: Path, samples: Sequence[Any], batch: int) -> list[float]:
        """Trains on batches of successive samples and lists each step's loss, the mean over its target tokens."""
        processor = SentencePieceProcessor(str(checkpoint / "tokenizer.model"))
        model = transformers_model().train()
        optimizer = self._make_optimizer(model)
        rates = [group["lr"] for group in optimizer.param_groups]
        total = math.ceil(len(samples) / batch)
        losses = []
        for step in range(total):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * self._share(step, total)
            chosen = samples[step * batch : (step + 1) * batch]
            loss = model(**self._collate(processor, folder, chosen)).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            losses.append(loss.item())
        return losses

    def _make_optimizer(self, model: Any) -> torch.optim.AdamW:
        projector = model.model.multi_modal_projector
        model.requires_grad_(not self.projector_only)
        model.model.vision_tower.requires_grad_(False)
        projector.requires_grad_(True)
        parts = [(projector, self.projector_rate or self.rate)]
        if not self.projector_only:
            parts += [(model.model.language_model, self.rate), (model.lm_head, self.rate)]
        groups = []
        for part, rate in parts:
            weights = list(part.parameters())
            groups.append({"params": [w for w in weights if w.ndim > 1], "lr": rate, "weight_decay": self.decay})
            groups.append({"params": [w for w in weights if w.ndim == 1], "lr": rate, "weight_decay": 0.0})
        return torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.999), eps=1e-8)

    def _share(self, step: int, total: int) -> float:
        """Share of the learning rate at a step."""
        if step < self.warmup:
            return step / self.warmup
        done = (step - self.warmup) / (total - self.warmup)
        return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[self.schedule]

    def _collate(self, processor: SentencePieceProcessor, folder: Path, samples: Sequence[Any]) -> dict[str, Tensor]:
        pairs = [encode(processor, sample) for sample in samples]
        length = max(len(ids) for ids, _ in pairs)
        images = [Image.open(folder / sample["image"]) for sample in samples if "image" in sample]
        batch = {
            "input_ids": torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in pairs]),
            "labels": torch.tensor([labels + [IGNORED] * (length - len(labels)) for _, labels in pairs]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in pairs]),
        }
        return batch | ({"pixel_values": torch.stack([self._pixels(image) for image in images])} if images else {})

    def _pixels(self, image: Image.Image) -> Tensor:
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        )  # bicubic, CLIP's mean and deviation: its defaults
        if self.aspect == "pad" and image.width != image.height:
            side = max(image.size)
            red, green, blue = (int(255 * mean) for mean in processor.image_mean)
            square = Image.new("RGB", (side, side), (red, green, blue))
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            image = square
        return processor(image, return_tensors="pt").pixel_values[0]


def encode(processor: SentencePieceProcessor, sample: Any) -> tuple[list[int], list[int]]:
    """Tokenizes a sample, an image's tokens in place; labels are the answer and the end token."""
    question, answer = (turn["value"] for turn in sample["conversations"])
    before, image, after = f"{SYSTEM} USER: {question} ASSISTANT:".partition("<image>")
    ids = [BOS, *processor.encode(before), *([IMAGE_TOKEN] * TOKENS if image else [])]
    begin, last = (len(ids), after) if image else (1, before)
    whole, masked = processor.encode(f"{last} {answer}"), processor.encode(last)
    assert whole[: len(masked)] == masked, "the answer's first token begins after the colon"
    ids = [*ids[:begin], *whole, EOS]
    return ids, [IGNORED] * (begin + len(masked)) + ids[begin + len(masked) :]
