"""Generates the answers of a batch of prompts about encoded pictures: each the one that its prompt would get alone.

Greedy, by beams, or sampled. A sampled answer hangs on the prompt and its own seed only, whatever stands beside it in
the batch. Knows neither question files nor how batches come about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import torch
from torch import Tensor

from llava.mm_utils import tokenizer_image_token
from llava.model.image_tokens import ImageTokens
from llava.serve.engine.chat_engine import ChatEngine
from llava.serve.engine.generate import Row, generate_rows
from llava.serve.engine.params import Sampling
from llava.serve.engine.prompting import separators


@dataclass(frozen=True)
class Request:
    """A prompt that waits for its answer."""

    ids: Tensor
    """int64 (L,), IMAGE_TOKEN_INDEX where the picture stands."""
    picture: ImageTokens | None
    """As the model's `encode_tokens` gives it."""
    seed: int = 0
    """Of a sampled answer, in [0, 2^32)."""


def prompt_ids(engine: ChatEngine, text: str, num_images: int = 1) -> Tensor:
    """int64 (L,): a question in the engine's prompt format."""
    prompt = engine.question(text, num_images).get_prompt()
    return torch.tensor(tokenizer_image_token(prompt, engine.tokenizer))


def row_seed(seed: int, index: int) -> int:
    """The seed of the `index`-th answer of a run with a seed of its own, in [0, 2^32)."""
    return int.from_bytes(sha256(f"{seed}:{index}".encode()).digest()[:4], "big")


def generate(engine: ChatEngine, requests: Sequence[Request], sampling: Sampling) -> list[str]:
    """The answers to a batch of prompts, in their order."""
    if sampling.num_beams > 1 and not sampling.greedy:
        # Sampled beams draw from the one global generator, so that neighbours would change what a row draws.
        if len(requests) > 1:
            return [text for request in requests for text in generate(engine, [request], sampling)]
        torch.manual_seed(requests[0].seed)
    stops = (*sampling.stop, *separators(engine.new_conversation()))
    answers: list[list[str]] = [[] for _ in requests]
    rows = [
        Row(
            request.ids,
            replace(sampling, stop=stops, seed=request.seed),
            engine.tokenizer,
            engine.end_tokens,
            emit=pieces.append,
        )
        for request, pieces in zip(requests, answers, strict=True)
    ]
    pictures = [request.picture for request in requests if request.picture is not None]
    generate_rows(engine.model, rows, pictures, engine.padding_id)
    for row in rows:
        if row.error is not None:
            raise row.error
    return ["".join(pieces).strip() for pieces in answers]
