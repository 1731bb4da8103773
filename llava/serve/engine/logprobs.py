"""Log-probabilities of an answer's tokens: the model's own, before penalties and temperature."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from llava.serve.engine.detokenize import UNFINISHED, Detokenizer
from llava.serve.engine.params import Sampling

MIN_LOGPROB = -9999.0  # lower ones are raised to this, since JSON has no infinity
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # SentencePiece's name of a one-byte token

RankedToken = tuple[int, float]
"""A token's id and its log-probability."""


@dataclass(frozen=True)
class StepLogprobs:
    """Log-probabilities of one step of one row."""

    chosen: float
    """Log-probability of the chosen token."""
    top: tuple[RankedToken, ...]
    """The likeliest tokens, best first."""


@dataclass(frozen=True)
class TextLogprob:
    """A token as text, with its log-probability."""

    text: str
    bytes: tuple[int, ...] | None
    """UTF-8 bytes of the token; None if unknown."""
    logprob: float

    def strip_leading_space(self) -> TextLogprob:
        """Copies the token without leading whitespace, for an answer that is stripped."""
        text = self.text.lstrip()
        return self if text == self.text else replace(self, text=text, bytes=tuple(text.encode()))


@dataclass(frozen=True)
class AnswerLogprob:
    """A token of the answer, with its alternatives."""

    token: TextLogprob
    top: tuple[TextLogprob, ...]
    """The likeliest tokens at this position, best first."""
    start: int
    """Offset of the token's text in the answer, in characters."""

    @property
    def end(self) -> int:
        """Offset of the end of the token's text."""
        return self.start + len(self.token.text)

    def strip_leading_space(self) -> AnswerLogprob:
        """Copies the token and its alternatives without leading whitespace."""
        top = tuple(token.strip_leading_space() for token in self.top)
        return AnswerLogprob(self.token.strip_leading_space(), top, self.start)


class LogprobRecorder(LogitsProcessor):
    """Records the log-probabilities of each step until its tokens are known; leaves the scores unchanged.

    An error is reported for the rows that asked for log-probabilities; the others are not affected.
    """

    def __init__(self, rows: Sequence[Sampling], on_error: Callable[[int, Exception], None]) -> None:
        """
        Args:
            rows: The settings of each row.
            on_error: Called with the index of a row that failed, and the error.
        """
        self.counts = {i: row.logprobs for i, row in enumerate(rows) if row.logprobs is not None}
        self.on_error = on_error
        self._steps: deque[Tensor | None] = deque()

    def __call__(self, input_ids: Tensor | None, scores: Tensor) -> Tensor:
        """Records a step's logits (B, V)."""
        self._steps.append(self._log_softmax(scores) if self.counts else None)
        return scores

    def take(self, tokens: Sequence[int]) -> dict[int, StepLogprobs]:
        """Removes the oldest step and lists its log-probabilities by row; `tokens` (B,) are those it chose."""
        step = self._steps.popleft() if self._steps else None
        if step is None:
            return {}
        try:
            chosen = step[range(len(step)), [tokens[row] for row in self.counts]].clamp(MIN_LOGPROB).tolist()
            best = step.topk(min(max(self.counts.values()), step.shape[-1]))
            values, ids = best.values.clamp(MIN_LOGPROB).tolist(), best.indices.tolist()
        except Exception as error:
            self._fail(error)
            return {}
        return {
            row: StepLogprobs(chosen[i], tuple(zip(ids[i][:count], values[i][:count], strict=True)))
            for i, (row, count) in enumerate(self.counts.items())
        }

    def _log_softmax(self, scores: Tensor) -> Tensor | None:
        try:
            return torch.log_softmax(scores[list(self.counts)].float(), -1)
        except Exception as error:
            self._fail(error)
            return None

    def _fail(self, error: Exception) -> None:
        for row in self.counts:
            self.on_error(row, error)


def describe_step(detokenizer: Detokenizer, start: int, token: int, step: StepLogprobs) -> AnswerLogprob:
    """Converts a step's tokens to text.

    Args:
        detokenizer: Holds the answer before the token.
        start: Length of that answer in characters.
        token: The chosen token.
        step: The step's log-probabilities.
    """
    top = tuple(_describe(detokenizer, other, logprob) for other, logprob in step.top)
    return AnswerLogprob(_describe(detokenizer, token, step.chosen), top, start)


def _describe(detokenizer: Detokenizer, token: int, logprob: float) -> TextLogprob:
    text, name = detokenizer.text_of(token), _name_of(detokenizer.tokenizer, token)
    if not text and name in detokenizer.tokenizer.all_special_tokens:  # not part of the text
        return TextLogprob(name, None, logprob)
    if byte := BYTE_PIECE.fullmatch(name):
        return TextLogprob(text, (int(byte[1], 16),), logprob)
    unknown = UNFINISHED in text and UNFINISHED not in name  # part of a character
    return TextLogprob(text, None if unknown else tuple(text.encode()), logprob)


def _name_of(tokenizer: Any, token: int) -> str:
    """Finds a token's name in the vocabulary; empty for ids beyond it, which pad the embedding matrix."""
    return tokenizer.convert_ids_to_tokens(token) or ""
