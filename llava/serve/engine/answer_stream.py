"""One answer on its way from the model thread to a reader, who may be a thread or a coroutine. Knows no model."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from llava.model.prepared_image import PreparedImage
from llava.serve.engine.generate import FinishReason, Row
from llava.serve.engine.logprobs import AnswerLogprob


@dataclass(frozen=True)
class Usage:
    """What an answer cost: tokens, and seconds."""

    text_tokens: int
    """Of the prompt, without pictures."""
    visual_tokens: int
    """Of the pictures."""
    uniform_tokens: int
    """What the pictures would cost on the uniform grid of their sizes."""
    generated_tokens: int = 0
    """Of the answer, its end token included."""
    queue_seconds: float = 0.0
    """Waiting for the model."""
    image_seconds: float = 0.0
    """Encoding pictures, those of the whole batch."""
    prefill_seconds: float = 0.0
    """From there to the first token."""
    decode_seconds: float = 0.0
    """From there to the last."""

    @property
    def prompt_tokens(self) -> int:
        """Text and pictures."""
        return self.text_tokens + self.visual_tokens

    @property
    def seconds_per_token(self) -> float:
        """Of each token after the first."""
        return self.decode_seconds / max(1, self.generated_tokens - 1)


class Answer:
    """Text of an answer as it comes. Iterate over it, with `for` or `async for`; once.

    Leaving an `async for` early does not stop the model: call `cancel`.
    """

    def __init__(
        self, row: Row, views: Sequence[PreparedImage], usage: Usage, forget: Callable[[Answer], None]
    ) -> None:
        """
        Args:
            row: The prompt; its pieces of text are passed on to the reader.
            views: Its pictures.
            usage: Tokens of the prompt; the rest is filled in when the answer has ended.
            forget: Called when a request is cancelled, so that it need not wait any more.
        """
        self.row, self.views, self.usage = row, views, usage
        row.emit, row.on_end = self._put, self._end
        self._forget = forget
        self._submitted = self._encoded = time.perf_counter()
        self._pieces: deque[str] = deque()
        self._changed = threading.Condition()
        self._wake: Callable[[], object] | None = None
        self._ended = False

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; None while it goes on, or where the model failed."""
        return self.row.finish_reason

    def cancel(self) -> None:
        """Lets the answer end with the next token, or before it begins."""
        self.row.cancelled.set()
        self._forget(self)

    def close(self) -> None:
        """Cancels, and waits until the model has left the request."""
        self.cancel()
        with self._changed:
            self._changed.wait_for(lambda: self._ended)

    def __iter__(self) -> Iterator[str]:
        """Yields pieces of text.

        Raises:
            GenerationError: the model failed.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pieces or self._ended)
                pieces, ended = self._take()
            yield from pieces
            if ended:
                break
        self._raise()

    async def __aiter__(self) -> AsyncIterator[str]:
        """As `__iter__`, in an event loop."""
        event, loop = asyncio.Event(), asyncio.get_running_loop()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody reads any more
                loop.call_soon_threadsafe(event.set)

        with self._changed:
            self._wake = wake
        while True:
            event.clear()
            with self._changed:
                pieces, ended = self._take()
            if pieces:
                yield "".join(pieces)  # a reader that lags behind gets more at a time, and so catches up
            if ended:
                break
            await event.wait()
        self._raise()

    def note_start(self, taken_up: float, encoded: float) -> None:
        """Notes when the model took the request up and had its pictures encoded, by `time.perf_counter`."""
        self._encoded = encoded
        self.usage = replace(self.usage, queue_seconds=taken_up - self._submitted, image_seconds=encoded - taken_up)

    def fail(self, error: Exception) -> None:
        """Ends the answer with an error, which its reader gets after the text so far."""
        self.row.fail(error)

    def take_logprobs(self, characters: int) -> list[AnswerLogprob]:
        """Removes and lists the tokens whose text begins within the answer's first characters."""
        waiting, taken = self.row.logprobs, []
        while waiting and waiting[0].start < characters:
            taken.append(waiting.popleft())
        return taken

    def _end(self) -> None:
        now = time.perf_counter()
        first = self.row.first_token_at or now
        self.usage = replace(
            self.usage,
            generated_tokens=self.row.generated,
            prefill_seconds=max(0.0, first - self._encoded),
            decode_seconds=now - first,
        )
        with self._changed:
            self._ended = True
            self._notify()

    def _put(self, piece: str) -> None:
        with self._changed:
            self._pieces.append(piece)
            self._notify()

    def _notify(self) -> None:
        self._changed.notify_all()
        if self._wake is not None:
            self._wake()

    def _take(self) -> tuple[list[str], bool]:
        pieces = list(self._pieces)
        self._pieces.clear()
        return pieces, self._ended

    def _raise(self) -> None:
        if self.row.error is not None:
            raise self.row.error
