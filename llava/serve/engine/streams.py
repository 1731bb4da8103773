"""Answers that are being generated together, and the choice of their next tokens."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from llava.serve.engine.generate import Row, append_token
from llava.serve.engine.logprobs import LogprobRecorder
from llava.serve.engine.prefixes import PromptKey
from llava.serve.engine.sampling import RowSampler, find_penalty, make_generator
from qlip.language_positions import ImageSpan

T = TypeVar("T")


@dataclass(eq=False)
class Stream:
    """An answer between two of its tokens: all that its next token depends on, except the keys and values."""

    row: Row
    """Its prompt, and where its tokens go."""
    tokens: list[int] = field(default_factory=list, kw_only=True)
    """Token ids of the answer so far."""
    position: int = field(default=0, kw_only=True)
    """Language-model position of the last token."""
    spans: tuple[ImageSpan, ...] = field(default=(), kw_only=True)
    """Spans of the prompt's images, once they are known."""

    def __post_init__(self) -> None:
        self.generator = make_generator(self.row.sampling)

    @property
    def ids(self) -> Tensor:
        """int64 (L,): the prompt and the answer so far, IMAGE_TOKEN_INDEX in place of each image."""
        return torch.cat([self.row.prompt, torch.tensor(self.tokens, dtype=torch.int64)])

    @property
    def has_whole_key(self) -> bool:
        """Whether the key has all of the prompt, so that its keys and values can be kept."""
        return len(self.row.key) == len(self.row.prompt)

    @property
    def key(self) -> PromptKey:
        """The key of the prompt and the answer so far."""
        return (*self.row.key, *self.tokens) if self.has_whole_key else self.row.key


class TokenChooser:
    """Chooses the next tokens of some streams, each by its own settings, and hands them to their rows.

    An error in one row fails that row only.
    """

    def __init__(self, model: Any, streams: Sequence[Stream], device: torch.device) -> None:
        """
        Args:
            model: Its generation config has the repetition penalty of rows that do not set one.
            streams: Row by row.
            device: Device of the logits.
        """
        self.streams = list(streams)
        settings = [stream.row.sampling for stream in streams]
        prompts = [stream.row.prompt for stream in streams]
        generators = {i: s.generator for i, s in enumerate(streams) if s.generator is not None}
        self.recorder = LogprobRecorder(settings, self._fail)
        self.sampler = RowSampler(settings, device, prompts, self._fail, find_penalty(model), generators)
        self.penalizes = any(each != 1 for each in self.sampler.penalties)

    def take(self, logits: Tensor) -> None:
        """Chooses a token for each stream from the logits (B, V), and appends it to the answers.

        A stream that has ended, or ends with this token, is treated alike: its tokens are not read again.
        """
        scores = logits.float()
        if self.recorder.counts:
            self.recorder(None, scores)
        answers = None
        if self.penalizes:
            answers = [torch.tensor(s.tokens, dtype=torch.int64, device=logits.device) for s in self.streams]
        tokens = self.sampler(answers, scores).argmax(-1).tolist()
        logprobs = self.recorder.take(tokens)
        for i, (stream, token) in enumerate(zip(self.streams, tokens, strict=True)):
            append_token(stream.row, token, logprobs.get(i))
            stream.tokens.append(token)
            stream.position += 1

    def _fail(self, row: int, error: Exception) -> None:
        self.streams[row].row.fail(error)


def run_to_end(work: Generator[None, None, T]) -> T:
    """Runs a generator of work to its end without pauses, and returns its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def while_wanted(streams: Sequence[Stream], work: Generator[None, None, T]) -> Generator[None, None, T | None]:
    """Does some work for requests piece by piece; returns None once all of them were cancelled."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
        if all(stream.row.finished() for stream in streams):
            return None
        yield
