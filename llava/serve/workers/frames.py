"""The frames of a streamed answer in LLaVA's protocol.

A frame is a JSON object and a zero byte. It holds the prompt with all of the answer so far, and an error code. Our
workers add other fields to a frame: LLaVA's clients read its own fields only.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from llava.serve.http.failures import Failure
from llava.serve.workers.protocol import described

END = b"\0"
MAX_FRAME = 2**26  # bytes


class ErrorCode(IntEnum):
    """The error codes that LLaVA's clients read."""

    NONE = 0
    WORKER = 1
    """The worker refused the request or failed."""
    NO_WORKER = 2
    """No worker serves the model."""
    UNREACHABLE = 3
    """The worker could not be reached, or has disconnected."""


class Frame(BaseModel):
    """The fields of a frame that LLaVA's clients read."""

    model_config = ConfigDict(strict=True)

    text: str
    error_code: int


def check_frame(frame: bytes) -> None:
    """Raises ValueError unless bytes are a frame in JSON as every client reads it; repeats nothing of them."""
    try:
        Frame.model_validate(from_json(frame, allow_inf_nan=False))
    except ValidationError as error:
        raise described(error) from None


def frame(text: str, more: Mapping[str, Any] | None = None) -> bytes:
    """Builds a frame of an answer.

    Args:
        text: The prompt and all of the answer so far.
        more: Further fields.
    """
    return json.dumps({"text": text, "error_code": ErrorCode.NONE, **(more or {})}).encode() + END


def error_frame(failure: Failure, code: ErrorCode = ErrorCode.WORKER) -> bytes:
    """Builds the frame that reports a failure."""
    return json.dumps({**failure.body(), "error_code": code}).encode() + END


def error_reply(failure: Failure, code: ErrorCode = ErrorCode.WORKER) -> Response:
    """Builds a reply that reports a failure by its status and by one frame: LLaVA's clients read the frame only."""
    return Response(error_frame(failure, code), failure.status, failure.headers, "application/octet-stream")


class FrameSplitter:
    """Splits received bytes into frames."""

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        """
        Args:
            max_frame: Largest frame, in bytes.
        """
        self.max_frame = max_frame
        self._rest = bytearray()

    def push(self, data: bytes) -> list[bytes]:
        """Adds bytes; returns the frames that are complete now, without their zero bytes.

        Raises:
            ValueError: a frame is too long.
        """
        frames = []
        *ended, rest = data.split(END)  # of new bytes alone: a long frame is not searched again with each chunk
        for part in ended:
            self._extend(part)
            frames.append(bytes(self._rest))
            self._rest.clear()
        self._extend(rest)
        return [frame for frame in frames if frame]

    def finish(self) -> list[bytes]:
        """Finds the rest at the end of the stream: a last frame that lacks its zero byte, or nothing."""
        return [bytes(self._rest)] if self._rest.strip() else []

    def _extend(self, part: bytes) -> None:
        """Appends a part to the frame that has begun."""
        if len(self._rest) + len(part) > self.max_frame:
            raise ValueError(f"a frame is longer than {self.max_frame:,} bytes")
        self._rest += part


def split_frames(chunks: Iterable[bytes], max_frame: int = MAX_FRAME) -> Iterator[bytes]:
    """Yields the frames of a stream, as `read_frames` does."""
    splitter = FrameSplitter(max_frame)
    for chunk in chunks:
        yield from splitter.push(chunk)
    yield from splitter.finish()


async def read_frames(chunks: AsyncIterable[bytes], max_frame: int = MAX_FRAME) -> AsyncIterator[bytes]:
    """Yields the frames of a stream without their zero bytes; the last one may lack it.

    Raises:
        ValueError: a frame has more than `max_frame` bytes.
    """
    splitter = FrameSplitter(max_frame)
    async for chunk in chunks:
        for one in splitter.push(chunk):
            yield one
    for one in splitter.finish():
        yield one


class FrameStream(StreamingResponse):
    """A streamed reply that releases the source of its frames at the end, also before the first one."""

    media_type = "application/octet-stream"

    def __init__(self, frames: AsyncIterator[bytes], release: Callable[[], Awaitable[None]]) -> None:
        """
        Args:
            frames: The frames, with their zero bytes.
            release: Called once, after the last frame or when the client has disconnected.
        """
        super().__init__(frames, headers={"X-Accel-Buffering": "no"})  # keeps nginx from buffering frames
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the reply."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._release()
