"""A request between its submission and its place in the queue."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from llava.conversation import Conversation
from llava.serve.engine.answer_stream import AnswerStream
from llava.serve.engine.params import Sampling
from llava.serve.engine.vision import Picture, check_pictures
from qlip import QLIPConfig


@dataclass(frozen=True)
class Request:
    """The arguments of `ChatEngine.submit`, its settings computed."""

    prompt: str | Conversation
    images: Sequence[Picture]
    sampling: Sampling
    settings: QLIPConfig | None
    shorten: bool

    def __post_init__(self) -> None:
        check_pictures(self.images)
        if not isinstance(self.sampling, Sampling):
            kind = type(self.sampling).__name__
            raise TypeError(f"sampling is a {kind}; it must be Sampling(temperature=..., max_new_tokens=...)")


def cancel_prepared(preparing: Future[AnswerStream]) -> None:
    """Cancels a request whose caller was cancelled, once it is prepared."""
    if preparing.exception() is None:
        preparing.result().cancel()
