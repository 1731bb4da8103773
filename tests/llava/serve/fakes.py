"""Fakes of a loaded model, its tower, processor and tokenizer, whose answers a test chooses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

BOS, EOS = 1, 2


class BytesTokenizer:
    """One token per byte after BOS, as a byte-fallback SentencePiece vocabulary gives for unknown text."""

    bos_token_id: int | None = BOS
    eos_token_id = EOS
    pad_token_id = None

    def __call__(self, text: str) -> SimpleNamespace:
        start = [] if self.bos_token_id is None else [self.bos_token_id]
        return SimpleNamespace(input_ids=start + self.bytes(text))

    @staticmethod
    def bytes(text: str) -> list[int]:
        return [byte + 3 for byte in text.encode()]

    @staticmethod
    def decode(ids: Iterable[int] | Tensor, skip_special_tokens: bool = True) -> str:
        return bytes(int(i) - 3 for i in ids if i >= 3).decode(errors="replace")

    def batch_decode(self, rows: Iterable[Iterable[int]], skip_special_tokens: bool = True) -> list[str]:
        return [self.decode(row) for row in rows]


class SquareProcessor:
    """Prepares every picture as 3 x 4 x 4 zeros."""

    keeps_aspect_ratio = True

    def preprocess(self, image: Any, return_tensors: str) -> dict[str, Tensor]:
        return {"pixel_values": torch.zeros(1, 3, 4, 4)}


class Tower:
    """A tower of 16 tokens per picture."""

    device = torch.device("cpu")
    dtype = torch.float64
    num_patches = native_tokens = 16

    def encode_tokens(self, pixels: list[Tensor]) -> list[Tensor]:
        return pixels


class QuadtreeTower(Tower):
    """A tower with a quadtree of 5 leaves, whatever the picture."""

    def __init__(self, thumbnail: bool = False) -> None:
        self.native_tokens = 5 + self.num_patches * thumbnail

    def partition(self, pixels: Tensor) -> range:
        assert pixels.shape == (3, 4, 4)
        return range(5)


class ScriptedModel:
    """Generates the answers of a script in order, byte by byte; raises an exception in the script."""

    device = torch.device("cpu")

    def __init__(self, script: Sequence[str | Exception], tower: Tower | None = None, **config: Any) -> None:
        self.script = list(script)
        self.tower = tower or Tower()
        self.config = SimpleNamespace(
            **{"conv_mode": None, "mm_use_im_start_end": False, "mm_vision_tower": None, "has_tower": True, **config}
        )
        self.calls: list[dict[str, Any]] = []
        self.emitted = 0

    def get_vision_tower(self) -> Tower:
        return self.tower

    @property
    def prompts(self) -> list[str]:
        """The prompts so far, with image tokens as `<image>`."""
        ids = [call["input_ids"][0].tolist() for call in self.calls]
        return ["".join("<image>" if i < 0 else chr(i - 3) for i in row if i < 0 or i >= 3) for row in ids]

    @property
    def temperatures(self) -> list[list[float]]:
        """Temperatures of each call's sampled rows; empty for greedy ones."""
        samplers = [call["logits_processor"][0] for call in self.calls]
        return [[round(value, 6) for value in sampler.temperature.tolist()] for sampler in samplers]

    def project(self, tokens: list[Tensor]) -> list[Tensor]:
        """Returns the pixels unchanged."""
        return tokens

    def generate(
        self, input_ids: Tensor, *, streamer: Any = None, stopping_criteria: Any = (), **options: Any
    ) -> Tensor:
        self.calls.append({"input_ids": input_ids, **options})
        answer = self.script.pop(0)
        if streamer is not None:
            streamer.put(torch.empty(1, 0, dtype=torch.long))
        if isinstance(answer, Exception):
            raise answer
        ids: list[int] = []
        for token in [*BytesTokenizer.bytes(answer), EOS]:
            ids.append(token)
            self.emitted += 1
            if streamer is not None:
                streamer.put(torch.tensor([token]))
            if any(criterion(torch.tensor([ids]), None).all() for criterion in stopping_criteria):
                break
        if streamer is not None:
            streamer.end()
        return torch.tensor([ids])
