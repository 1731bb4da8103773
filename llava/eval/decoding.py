"""Generates the answers of a batch of prompts about encoded pictures: each the one that its prompt would get alone.

Greedy, by beams, or sampled. A sampled answer hangs on the prompt and its own seed only, whatever stands beside it in
the batch. Knows neither question files nor how batches come about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from llava.mm_utils import KeywordsStoppingCriteria, tokenizer_image_token
from llava.model.multimodal_encoder.base import ImageTokens
from llava.serve.engine import ChatEngine, Sampling, separators, until_stop


@dataclass(frozen=True)
class Request:
    """A prompt that waits for its answer."""

    ids: Tensor
    """int64 (L,), IMAGE_TOKEN_INDEX where the picture stands."""
    picture: ImageTokens | None
    """As the model's `encode_images` gives it."""
    seed: int = 0
    """Of a sampled answer, in [0, 2^32)."""


def prompt_ids(engine: ChatEngine, text: str, num_images: int = 1) -> Tensor:
    """int64 (L,): a question in the engine's prompt format."""
    prompt = engine.question(text, num_images).get_prompt()
    return torch.tensor(tokenizer_image_token(prompt, engine.tokenizer))


def row_seed(seed: int, index: int) -> int:
    """The seed of the `index`-th answer of a run with a seed of its own, in [0, 2^32)."""
    return int.from_bytes(sha256(f"{seed}:{index}".encode()).digest()[:4], "big")


@torch.inference_mode()
def generate(engine: ChatEngine, requests: Sequence[Request], sampling: Sampling) -> list[str]:
    """The answers to a batch of prompts, in their order."""
    if sampling.temperature > 0 and sampling.num_beams > 1 and len(requests) > 1:
        # Beams draw from the one global generator, so that neighbours would change what a row draws.
        return [text for request in requests for text in generate(engine, [request], sampling)]
    rows = [request.ids for request in requests]
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    ids = pad_sequence(rows, batch_first=True, padding_value=engine.padding_id)
    stops = (*sampling.stop, *separators(engine.new_conversation()))
    device = engine.model.device
    said = engine.model.generate(
        ids.to(device),
        images=[request.picture for request in requests if request.picture is not None] or None,
        attention_mask=mask.to(device),
        max_new_tokens=sampling.max_new_tokens,
        pad_token_id=engine.padding_id,
        stopping_criteria=_stopping(engine, stops, len(rows)),
        **_choice(requests, sampling, device),
    )
    texts = engine.tokenizer.batch_decode(said, skip_special_tokens=True)
    return ["".join(until_stop([text], stops)).strip() for text in texts]


def _choice(requests: Sequence[Request], sampling: Sampling, device: torch.device) -> dict[str, Any]:
    """How the next token is chosen, in transformers' words."""
    greedy: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "num_beams": sampling.num_beams}
    if sampling.temperature == 0:
        return greedy
    if sampling.num_beams > 1:
        torch.manual_seed(requests[0].seed)
        return {**greedy, "do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
    steps: list[Any] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_p is not None and sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    return {**greedy, "logits_processor": LogitsProcessorList([*steps, _GumbelNoise(requests)])}


def _stopping(engine: ChatEngine, stops: Sequence[str], rows: int) -> list[KeywordsStoppingCriteria] | None:
    """Ends a row at a stop string; the tokenizer's own end token needs no watching."""
    watched = [stop for stop in stops if stop != engine.tokenizer.eos_token]
    nothing = torch.empty(rows, 0, dtype=torch.int64)
    return [KeywordsStoppingCriteria(watched, engine.tokenizer, nothing)] if watched else None


class _GumbelNoise(LogitsProcessor):
    """Makes the likeliest token a sample: argmax(logits + Gumbel noise) is drawn from softmax(logits).

    Each row has a generator of its own, on the CPU, so that a draw is the same beside any other rows.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self.generators = [torch.Generator().manual_seed(request.seed) for request in requests]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.stack(
            [torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in self.generators]
        )
        return scores.float() - noise.log().to(scores.device)
