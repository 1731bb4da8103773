"""Log-probabilities of an answer's tokens: those of the model, before penalties and temperature. Knows no protocol."""

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

LEAST = -9999.0  # given for any lower one, since JSON has no infinity
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # SentencePiece's name of a token that is one byte

TokenLogprob = tuple[int, float]
"""A token's id and its log-probability."""


@dataclass(frozen=True)
class StepLogprobs:
    """Log-probabilities at one token of one row."""

    chosen: float
    top: tuple[TokenLogprob, ...]
    """The likeliest tokens, best first."""


@dataclass(frozen=True)
class TextLogprob:
    """A token as text, with its log-probability."""

    text: str
    bytes: tuple[int, ...] | None
    """None where the token's bytes are not known."""
    logprob: float

    def without_leading_blanks(self) -> TextLogprob:
        """The same token where the answer's first blanks are cut off."""
        text = self.text.lstrip()
        return self if text == self.text else replace(self, text=text, bytes=tuple(text.encode()))


@dataclass(frozen=True)
class AnswerLogprob:
    """A token of the answer."""

    token: TextLogprob
    top: tuple[TextLogprob, ...]
    """The likeliest tokens in its place, best first."""
    start: int
    """Characters of the answer before it."""

    @property
    def end(self) -> int:
        """Characters of the answer up to its end."""
        return self.start + len(self.token.text)

    def without_leading_blanks(self) -> AnswerLogprob:
        """The same where the answer's first blanks are cut off."""
        top = tuple(token.without_leading_blanks() for token in self.top)
        return AnswerLogprob(self.token.without_leading_blanks(), top, self.start)


class LogprobRecorder(LogitsProcessor):
    """Keeps the log-probabilities of each step until its tokens are known; changes no scores.

    A row whose log-probabilities cannot be had is reported, and its neighbours are not touched.
    """

    def __init__(self, rows: Sequence[Sampling], on_error: Callable[[int, Exception], None]) -> None:
        """
        Args:
            rows: the settings of each row.
            on_error: gets the number of a row that failed, and why.
        """
        self.counts = {i: row.logprobs for i, row in enumerate(rows) if row.logprobs is not None}
        self.on_error = on_error
        self._steps: deque[Tensor | None] = deque()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Notes a step's logits (B, V)."""
        self._steps.append(self._log_softmax(scores) if self.counts else None)
        return scores

    def take(self, tokens: Sequence[int]) -> dict[int, StepLogprobs]:
        """Hands out the log-probabilities of the oldest step left, by row; `tokens` are those that it chose."""
        step = self._steps.popleft() if self._steps else None
        if step is None:
            return {}
        try:
            chosen = step[range(len(step)), [tokens[row] for row in self.counts]].clamp(LEAST).tolist()
            best = step.topk(min(max(self.counts.values()), step.shape[-1]))
            values, ids = best.values.clamp(LEAST).tolist(), best.indices.tolist()
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
    """Describes a step's tokens as text.

    Args:
        detokenizer: holds the answer before the token.
        start: characters of that answer.
        token: what was chosen.
        step: its log-probabilities.
    """
    top = tuple(_describe(detokenizer, other, logprob) for other, logprob in step.top)
    return AnswerLogprob(_describe(detokenizer, token, step.chosen), top, start)


def _describe(detokenizer: Detokenizer, token: int, logprob: float) -> TextLogprob:
    text, name = detokenizer.text_of(token), _name_of(detokenizer.tokenizer, token)
    if not text and name in detokenizer.tokenizer.all_special_tokens:  # never part of the text
        return TextLogprob(name, None, logprob)
    if byte := BYTE_PIECE.fullmatch(name):
        return TextLogprob(text, (int(byte[1], 16),), logprob)
    unknown = UNFINISHED in text and UNFINISHED not in name  # some bytes of a character
    return TextLogprob(text, None if unknown else tuple(text.encode()), logprob)


def _name_of(tokenizer: Any, token: int) -> str:
    """The vocabulary's name of a token; empty for ids beyond it, as of rows that pad an embedding."""
    return tokenizer.convert_ids_to_tokens(token) or ""
