"""Generates the answers to a batch of prompts; each row is sampled, streamed and ended separately.

The batch runs in transformers' `generate`, through its streamer, logits processors and stopping criteria.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.vision.image_tokens import ImageTokens
from llava.serve.engine.detokenize import Detokenizer, StopFilter
from llava.serve.engine.errors import GenerationError, ran_out_of_memory
from llava.serve.engine.logprobs import AnswerLogprob, LogprobRecorder, StepLogprobs, describe_step
from llava.serve.engine.params import Sampling
from llava.serve.engine.prefill import rotates_by_length
from llava.serve.engine.sampling import RowSampler, find_penalty

logger = logging.getLogger(__name__)

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass
class Row:
    """One prompt of a batch, and its answer so far."""

    prompt: Tensor
    """int64 (L,), with IMAGE_TOKEN_INDEX in place of each image."""
    sampling: Sampling
    tokenizer: Any
    end_tokens: frozenset[int]
    """Tokens that end the answer."""
    emit: Callable[[str], None] = field(default=lambda piece: None)
    """Receives each piece of text once it is certain."""
    on_end: Callable[[], None] = field(default=lambda: None)
    """Called when this answer has ended or failed, whatever the rest of the batch does."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set to end the answer at the next token."""
    generated: int = 0
    """Number of tokens so far, including the end token."""
    first_token_at: float | None = None
    """Time of the first token, by `time.perf_counter`."""
    finish_reason: FinishReason | None = None
    error: GenerationError | None = None
    """Why the answer failed; it then has no finish reason."""
    logprobs: deque[AnswerLogprob] = field(default_factory=deque)
    """Log-probabilities of the tokens, if asked for; a token's are appended before its text is emitted."""
    question: int = 0
    """Where the newest question begins, as an index into the prompt."""
    key: tuple[int | bytes, ...] = ()
    """What the keys and values of the prompt depend on, see `prefixes`; empty where they are not kept."""

    def __post_init__(self) -> None:
        self._text = Detokenizer(self.tokenizer)
        self._stop = StopFilter(self.sampling.stop)
        self._length = 0  # characters returned by the detokenizer

    @property
    def ended(self) -> bool:
        """Whether the answer has ended or failed."""
        return self.finish_reason is not None or self.error is not None

    def take(self, token: int, logprobs: StepLogprobs | None = None) -> None:
        """Appends a token to the answer, unless the answer has ended."""
        if self.finished():
            return
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        self.generated += 1
        if logprobs is not None and token not in self.end_tokens:
            self.logprobs.append(describe_step(self._text, self._length, token, logprobs))
        self._emit(self._text.push(token))
        if self._stop.stopped or token in self.end_tokens:
            self.finish("stop")
        elif self.generated >= self.sampling.max_new_tokens:
            self.finish("length")

    def finished(self) -> bool:
        """Whether the answer has ended; ends a cancelled one."""
        if not self.ended and self.cancelled.is_set():
            self.finish("cancelled")
        return self.ended

    def finish(self, reason: FinishReason) -> None:
        """Emits the text that was held back and ends the answer, unless it has ended."""
        if self.ended:
            return
        try:
            self._emit(self._text.finish())
            if rest := self._stop.finish():
                self.emit(rest)
        except Exception as error:
            self.fail(error)
            return
        self.finish_reason = reason
        self._notify_end()

    def fail(self, error: Exception) -> None:
        """Ends the answer with an error, unless it has ended."""
        if not self.ended:
            self.error = GenerationError(error, ran_out_of_memory(error))
            self._notify_end()

    def _notify_end(self) -> None:
        try:
            self.on_end()
        except Exception:  # this answer is complete, and the rest of the batch must continue
            logger.exception("the reader of an answer failed when it ended")

    def _emit(self, text: str) -> None:
        self._length += len(text)
        if text and (passed := self._stop.push(text)):
            self.emit(passed)


@contextmanager
def seeded(sampling: Sampling, device: torch.device) -> Iterator[None]:
    """Seeds torch's global generators for sampled beams, which draw from these alone, and restores them."""
    if sampling.num_beams == 1 or sampling.greedy or sampling.seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(sampling.seed)
        yield


class _RowStreamer(BaseStreamer):
    """Appends each step's tokens to their rows; an error in one row fails that row only."""

    def __init__(self, rows: Sequence[Row], recorder: LogprobRecorder) -> None:
        self.rows, self.recorder = rows, recorder

    def put(self, value: Tensor) -> None:
        if value.ndim > 1:  # the prompt
            return
        tokens = value.tolist()
        logprobs = self.recorder.take(tokens)
        for i, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
            append_token(row, token, logprobs.get(i))

    def end(self) -> None:
        """Does nothing: the rows detect their own end."""


class _RowsFinished(StoppingCriteria):
    """Stops each row of the batch when its answer has ended."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.tensor([row.finished() for row in self.rows], device=input_ids.device)


class _RowsCancelled(StoppingCriteria):
    """Stops the beams of each row whose reader has cancelled it."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        cancelled = torch.tensor([row.cancelled.is_set() for row in self.rows], device=input_ids.device)
        return cancelled.repeat_interleave(len(input_ids) // len(self.rows))  # there are more candidates than beams


def generate_rows(model: Any, rows: Sequence[Row], images: Sequence[ImageTokens], padding_id: int) -> None:
    """Generates the answers of a batch and streams them through the rows' `emit` and `on_end`.

    An error in the work for one row sets that row's `error`, and the others are answered; errors of the model are
    raised. Rows that would change each other (`rotates_by_length`) are answered one after the other.

    Args:
        model: A LLaVA model; its `generate` takes encoded images and returns new tokens only.
        rows: The prompts, all with the same `num_beams`.
        images: Projected tokens of all rows' images, in the order of their placeholders.
        padding_id: Token that pads shorter prompts and ended rows.
    """
    if len(rows) > 1 and rotates_by_length(model):
        waiting = iter(images)
        for row in rows:
            count = int((row.prompt == IMAGE_TOKEN_INDEX).sum())
            generate_rows(model, [row], list(islice(waiting, count)), padding_id)
        return
    device, sampling = model.device, rows[0].sampling
    prompts = [row.prompt for row in rows]
    mask = pad_sequence([torch.ones_like(prompt) for prompt in prompts], batch_first=True, padding_side="left")
    options: dict[str, Any] = {"num_beams": sampling.num_beams, "do_sample": False, "temperature": None, "top_p": None}
    if sampling.num_beams == 1:
        recorder = LogprobRecorder([row.sampling for row in rows], lambda row, error: rows[row].fail(error))
        sampler = make_sampler(model, rows, device)
        processors = [recorder, sampler] if recorder.counts else [sampler]
        options |= {"logits_processor": LogitsProcessorList(processors), "streamer": _RowStreamer(rows, recorder)}
        options["repetition_penalty"] = 1.0  # `RowSampler` applies each row's
        options["stopping_criteria"] = StoppingCriteriaList([_RowsFinished(rows)])
    else:
        options["eos_token_id"] = sorted(rows[0].end_tokens)
        options["stopping_criteria"] = StoppingCriteriaList([_RowsCancelled(rows)])
    if sampling.num_beams > 1 and not sampling.greedy:
        options |= {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
        options |= {"top_k": sampling.top_k} if sampling.top_k > 0 else {}
        options |= {"min_p": sampling.min_p} if sampling.min_p > 0 else {}
    with torch.inference_mode(), seeded(sampling, device):
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
                append_token(row, token)
        row.finish("stop")


def make_sampler(model: Any, rows: Sequence[Row], device: torch.device) -> RowSampler:
    """Makes the sampler of rows that begin; an error in one row fails that row only."""
    settings, prompts = [row.sampling for row in rows], [row.prompt for row in rows]
    return RowSampler(settings, device, prompts, lambda row, error: rows[row].fail(error), find_penalty(model))


def append_token(row: Row, token: int, logprobs: StepLogprobs | None = None) -> None:
    """Appends a token to a row's answer; an error ends this row only."""
    try:
        row.take(token, logprobs)
    except Exception as error:
        row.fail(error)
