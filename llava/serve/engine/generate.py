"""Generates the answers of several prompts together; each row is sampled, streamed and ended on its own.

transformers' `generate` runs the batch; this file feeds it and listens to it. Knows nothing of queues or clients.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from llava.model.image_tokens import ImageTokens
from llava.serve.engine.detokenize import Detokenizer, StopFilter
from llava.serve.engine.errors import GenerationError, ran_out_of_memory
from llava.serve.engine.logprobs import AnswerLogprob, LogprobRecorder, StepLogprobs, describe_step
from llava.serve.engine.params import Sampling
from llava.serve.engine.sampling import RowSampler

logger = logging.getLogger(__name__)

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
    """Called when the answer has ended or failed, whether or not the batch's others have."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Set it, and the row ends with the next token."""
    generated: int = 0
    """Tokens so far, the end token included."""
    first_token_at: float | None = None
    """By `time.perf_counter`."""
    finish_reason: FinishReason | None = None
    error: GenerationError | None = None
    """Why the answer failed, in which case it has no finish reason."""
    logprobs: deque[AnswerLogprob] = field(default_factory=deque)
    """Of the tokens, where the sampling asks for them; each is here before its text is emitted."""

    def __post_init__(self) -> None:
        self._text = Detokenizer(self.tokenizer)
        self._stop = StopFilter(self.sampling.stop)
        self._length = 0  # characters that the detokenizer has given

    @property
    def ended(self) -> bool:
        """Whether the answer has ended or failed."""
        return self.finish_reason is not None or self.error is not None

    def take(self, token: int, logprobs: StepLogprobs | None = None) -> None:
        """Adds a token to the answer, unless that has ended."""
        if self.finished():
            return
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        self.generated += 1
        if logprobs is not None and token not in self.end_tokens:
            self.logprobs.append(describe_step(self._text, self._length, token, logprobs))
        self._pass_on(self._text.push(token))
        if self._stop.stopped or token in self.end_tokens:
            self.finish("stop")
        elif self.generated >= self.sampling.max_new_tokens:
            self.finish("length")

    def finished(self) -> bool:
        """Whether the answer has ended; a cancelled one ends here."""
        if not self.ended and self.cancelled.is_set():
            self.finish("cancelled")
        return self.ended

    def finish(self, reason: FinishReason) -> None:
        """Ends the answer, unless it has ended, with the text that was held back."""
        if self.ended:
            return
        try:
            self._pass_on(self._text.finish())
            if rest := self._stop.finish():
                self.emit(rest)
        except Exception as error:
            self.fail(error)
            return
        self.finish_reason = reason
        self._tell_end()

    def fail(self, error: Exception) -> None:
        """Ends the answer with an error, unless it has ended."""
        if not self.ended:
            self.error = GenerationError(error, ran_out_of_memory(error))
            self._tell_end()

    def _tell_end(self) -> None:
        try:
            self.on_end()
        except Exception:  # the answer is whole, and its neighbours are not done
            logger.exception("the reader of an answer failed at its end")

    def _pass_on(self, text: str) -> None:
        self._length += len(text)
        if text and (passed := self._stop.push(text)):
            self.emit(passed)


class _Listener(BaseStreamer):
    """Hands each step's tokens to their rows; a row that cannot take its token fails alone."""

    def __init__(self, rows: Sequence[Row], recorder: LogprobRecorder) -> None:
        self.rows, self.recorder = rows, recorder

    def put(self, value: Tensor) -> None:
        if value.ndim > 1:  # the prompt
            return
        tokens = value.tolist()
        logprobs = self.recorder.take(tokens)
        for i, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
            _hand_over(row, token, logprobs.get(i))

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

    Where the work of one row fails, its `error` says so, and the others are answered; an error of the model is raised.

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
        settings = [row.sampling for row in rows]

        def fail(row: int, error: Exception) -> None:
            rows[row].fail(error)

        recorder = LogprobRecorder(settings, fail)
        config = getattr(model, "generation_config", None)
        penalty = getattr(config, "repetition_penalty", None) or 1.0
        sampler = RowSampler(settings, device, prompts, fail, penalty)
        processors = [recorder, sampler] if recorder.counts else [sampler]
        options |= {"logits_processor": LogitsProcessorList(processors), "streamer": _Listener(rows, recorder)}
        options["repetition_penalty"] = 1.0  # the rows have their own
        options["stopping_criteria"] = StoppingCriteriaList([_RowsFinished(rows)])
    elif not sampling.greedy:
        options |= {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
        options |= {"top_k": sampling.top_k} if sampling.top_k > 0 else {}
        options |= {"min_p": sampling.min_p} if sampling.min_p > 0 else {}
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
                _hand_over(row, token)
        row.finish("stop")


def _hand_over(row: Row, token: int, logprobs: StepLogprobs | None = None) -> None:
    """Gives a row its token; what goes wrong with it ends this row alone."""
    try:
        if logprobs is None:
            row.take(token)
        else:
            row.take(token, logprobs)
    except Exception as error:
        row.fail(error)
