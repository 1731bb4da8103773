"""One answer, streamed from the model thread to a reader in another thread or an event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from llava.model.vision.prepared_image import PreparedImage
from llava.serve.engine.generate import FinishReason, Row
from llava.serve.engine.logprobs import AnswerLogprob


@dataclass(frozen=True)
class Usage:
    """Cost of an answer: tokens and seconds."""

    text_tokens: int
    """Tokens of the prompt without its images."""
    visual_tokens: int
    """Tokens of the images; before the question has decided on them, the most that they may take."""
    uniform_tokens: int
    """Tokens that the images would take on the uniform grid at the same size."""
    cached_tokens: int = 0
    """Tokens of the prompt whose keys and values were known from an earlier request."""
    generated_tokens: int = 0
    """Tokens of the answer, including its end token."""
    queue_seconds: float = 0.0
    """Time in the queue."""
    first_pass_tokens: int = 0
    """Tokens of the images as the question was asked about them first; 0 where it decides nothing."""
    first_pass_seconds: float = 0.0
    """Time until the batch's questions were asked about the unsplit images, steps of running answers included."""
    image_seconds: float = 0.0
    """Time until all images of the batch were encoded, steps of running answers included."""
    prefill_seconds: float = 0.0
    """Time from then to the first token."""
    decode_seconds: float = 0.0
    """Time from the first token to the last."""

    @property
    def prompt_tokens(self) -> int:
        """Text and visual tokens."""
        return self.text_tokens + self.visual_tokens

    @property
    def seconds_per_token(self) -> float:
        """Mean time per token after the first."""
        return self.decode_seconds / max(1, self.generated_tokens - 1)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each step, in their order."""
        return {
            "queue": self.queue_seconds,
            "first_pass": self.first_pass_seconds,
            "image": self.image_seconds,
            "prefill": self.prefill_seconds,
            "decode": self.decode_seconds,
        }


class AnswerStream:
    """Stream of an answer's text; iterate over it once, with `for` or `async for`.

    Leaving an `async for` early does not stop the model: call `cancel`.
    """

    def __init__(
        self, row: Row, views: Sequence[PreparedImage], usage: Usage, on_cancel: Callable[[AnswerStream], None]
    ) -> None:
        """
        Args:
            row: The prompt; the text generated for it goes to the reader.
            views: The prompt's prepared images.
            usage: Tokens of the prompt; the other fields are filled in while the answer is generated.
            on_cancel: Called when the request is cancelled, to take it out of the queue.
        """
        self.row, self.views, self.usage = row, views, usage
        row.emit, row.on_end = self._put, self._end
        self._on_cancel = on_cancel
        self._submitted = self._encoded = time.perf_counter()
        self._started: float | None = None
        self._pieces: deque[str] = deque()
        self._changed = threading.Condition()
        self._wake: Callable[[], object] | None = None
        self._ended = False

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; None before its end, or if the model failed."""
        return self.row.finish_reason

    @property
    def length(self) -> int:
        """Tokens of the prompt and the answer so far."""
        return self.usage.prompt_tokens + self.row.generated

    def cancel(self) -> None:
        """Stops the answer at the next token, or before it begins."""
        self.row.cancelled.set()
        self._on_cancel(self)

    def close(self) -> None:
        """Cancels the request and waits until the model has stopped working on it."""
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
        """Yields pieces of text in an event loop; see `__iter__`."""
        event, loop = asyncio.Event(), asyncio.get_running_loop()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed, and its reader with it
                loop.call_soon_threadsafe(event.set)

        with self._changed:
            self._wake = wake
        while True:
            event.clear()
            with self._changed:
                pieces, ended = self._take()
            if pieces:
                yield "".join(pieces)  # a slow reader gets more text at a time and catches up
            if ended:
                break
            await event.wait()
        self._raise()

    def replace_images(self, views: Sequence[PreparedImage]) -> None:
        """Replaces the images by those that the question has decided on, and counts the tokens of both passes."""
        first = sum(view.first_tokens for view in self.views)
        self.views = views
        tokens = sum(view.tokens for view in views)
        self.usage = replace(self.usage, visual_tokens=tokens, first_pass_tokens=first)

    def note_cached(self, tokens: int) -> None:
        """Records how many tokens of the prompt had keys and values already; an answer that continues keeps its own."""
        if not self.row.generated:
            self.usage = replace(self.usage, cached_tokens=tokens)

    def note_start(self, started: float, asked: float, encoded: float) -> None:
        """Records when the model started, had asked about the images, and had encoded them, by `time.perf_counter`.

        An answer that continues after it was suspended keeps the times of its first start. One that starts again, since
        its batch failed before its first token, waited in the queue only until the first start; its work adds up.
        """
        if self.row.generated:
            return
        self._encoded = encoded
        self._started = started if self._started is None else self._started
        self.usage = replace(
            self.usage,
            queue_seconds=self._started - self._submitted,
            first_pass_seconds=self.usage.first_pass_seconds + asked - started,
            image_seconds=self.usage.image_seconds + encoded - asked,
        )

    def fail(self, error: Exception) -> None:
        """Ends the answer with an error, which is raised to its reader after the text so far."""
        self.row.fail(error)

    def take_logprobs(self, characters: int) -> list[AnswerLogprob]:
        """Removes and lists the tokens whose text starts within the first `characters` of the answer."""
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


def stream_text(answer: AnswerStream) -> Generator[str, None, None]:
    """Yields an answer's pieces; closing the iterator waits until the model has stopped."""
    try:
        yield from answer
    finally:
        answer.close()
