"""Generates the answers of several prompts together; each row is sampled, streamed and ended on its own.

transformers' `generate` runs the batch; this file feeds it and listens to it. Knows nothing of queues or clients.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from llava.model.multimodal_encoder.base import ImageTokens
from llava.serve.sampling import RowSampler, Sampling
from llava.serve.text_stream import Detokenizer, StopFilter

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass
class Row:
    """One prompt on its way through a batch, and what has become of its answer."""

    prompt: Tensor
    """int64 (L,), IMAGE_TOKEN_INDEX where an image stands."""
    sampling: Sampling
    tokenizer: Any
    end_tokens: frozenset[int]
    """Tokens that end the answer."""
    emit: Callable[[str], None] = field(default=lambda piece: None)
    """Gets each piece of text as soon as it is safe to show."""
    on_end: Callable[[], None] = field(default=lambda: None)
    """Called when the answer has ended, be the batch's others still at it."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set it, and the row ends with the next token."""
    generated: int = 0
    """Tokens so far, the end token included."""
    first_token_at: float | None = None
    """By `time.perf_counter`."""
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self._text = Detokenizer(self.tokenizer)
        self._stop = StopFilter(self.sampling.stop)

    def take(self, token: int) -> None:
        """Adds a token to the answer, unless that has ended."""
        if self.finished():
            return
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        self.generated += 1
        self._pass_on(self._text.push(token))
        if self._stop.stopped or token in self.end_tokens:
            self.finish("stop")
        elif self.generated >= self.sampling.max_new_tokens:
            self.finish("length")

    def finished(self) -> bool:
        """Whether the answer has ended; a cancelled one ends here."""
        if self.finish_reason is None and self.cancelled.is_set():
            self.finish("cancelled")
        return self.finish_reason is not None

    def finish(self, reason: FinishReason) -> None:
        """Ends the answer, unless it has ended, with the text that was held back."""
        if self.finish_reason is not None:
            return
        self._pass_on(self._text.finish())
        if rest := self._stop.finish():
            self.emit(rest)
        self.finish_reason = reason
        self.on_end()

    def _pass_on(self, text: str) -> None:
        if text and (passed := self._stop.push(text)):
            self.emit(passed)


class _Listener(BaseStreamer):
    """Hands each step's tokens to their rows."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def put(self, value: Tensor) -> None:
        if value.ndim > 1:  # the prompt
            return
        for row, token in zip(self.rows, value.tolist(), strict=True):
            row.take(token)

    def end(self) -> None:
        """The rows know when they have ended."""


class _RowsFinished(StoppingCriteria):
    """Ends each row of the batch when its answer has."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.tensor([row.finished() for row in self.rows], device=input_ids.device)


def generate_rows(model: Any, rows: Sequence[Row], images: Sequence[ImageTokens], padding_id: int) -> None:
    """Generates the answers of a batch; they leave through the rows' `emit` and `on_end`.

    Args:
        model: A LLaVA model; its `generate` takes encoded images and gives new tokens only.
        rows: The prompts; of one width of beam search.
        images: As the model's `encode_tokens` gives them, in the order of their placeholders over all rows.
        padding_id: Fills up shorter prompts, and rows that have ended.
    """
    device, sampling = model.device, rows[0].sampling
    prompts = [row.prompt for row in rows]
    mask = pad_sequence([torch.ones_like(prompt) for prompt in prompts], batch_first=True, padding_side="left")
    options: dict[str, Any] = {"num_beams": sampling.num_beams, "do_sample": False, "temperature": None, "top_p": None}
    if sampling.num_beams == 1:
        sampler = RowSampler([row.sampling for row in rows], device)
        options |= {"logits_processor": LogitsProcessorList([sampler]), "streamer": _Listener(rows)}
        options["stopping_criteria"] = StoppingCriteriaList([_RowsFinished(rows)])
    elif not sampling.greedy:
        options |= {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
    with torch.inference_mode():
        ids = model.generate(
            pad_sequence(prompts, batch_first=True, padding_value=padding_id, padding_side="left").to(device),
            attention_mask=mask.to(device),
            images=list(images) or None,
            max_new_tokens=max(row.sampling.max_new_tokens for row in rows),
            pad_token_id=padding_id,
            use_cache=True,
            **options,
        )
    for row, answer in zip(rows, ids.tolist(), strict=True):
        if sampling.num_beams > 1:
            for token in answer:
                row.take(token)
        row.finish("stop")
