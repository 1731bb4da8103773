"""LLaVA's protocol between clients, controllers and workers: its requests, and the frames of a streamed answer.

A frame is a JSON object and a zero byte. It holds the prompt with all of the answer so far, and an error code. Our
workers add other fields to a frame, and `conv_modes` to their status: LLaVA's clients read its own fields only.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from llava.serve.engine.params import Sampling
from llava.serve.http.addresses import host_of
from llava.serve.http.failures import Failure, shortened
from llava.serve.http.limits import MAX_NAME
from llava.serve.openai.fields import QLIPFields
from qlip.command import escaped

GREEDY_BELOW = 0.001  # a temperature up to this one is greedy
MAX_NEW_TOKENS = 1024
MAX_ITEMS = 1000  # of a list; a server's limit on images is lower
MAX_STOPS = 16
MAX_STOP_LENGTH = 1000  # characters
MAX_NUMBER = 1_000_000  # of a worker's queue length and speed; a higher one is an error
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


def _checked_address(address: str) -> str:
    host_of(address)
    return address


def _checked_name(name: str) -> str:
    """Refuses names that would forge lines of a log, or write to the terminal that shows it."""
    if not name.isprintable():
        words = "a name holds printable characters only, no control characters such as line feeds, got {name}"
        raise PydanticCustomError("not_printable", words, {"name": shortened(name)})
    return name


def _checked_stop(stop: str | list[str]) -> str | list[str]:
    """Limits the stop texts: the one model thread looks for each of them after each token."""
    texts = [stop] if isinstance(stop, str) else stop
    longest = max(map(len, texts), default=0)
    if len(texts) > MAX_STOPS or longest > MAX_STOP_LENGTH:
        found = f"{len(texts):,} texts, the longest of {longest:,} characters"
        raise ValueError(f"{found}; at most {MAX_STOPS} of at most {MAX_STOP_LENGTH:,} characters each are allowed")
    return stop


def _checked_number(value: Any) -> Any:
    """Refuses numbers out of range; the field's type refuses anything that is not a number."""
    if isinstance(value, bool) or (isinstance(value, int | float) and not 0 <= value <= MAX_NUMBER):
        got = "a number of more than 20 digits" if isinstance(value, int) and abs(value) >= 10**20 else repr(value)
        raise PydanticCustomError("out_of_range", f"must be a number from 0 to {MAX_NUMBER:,}, got {got}")
    return value


WorkerAddress = Annotated[str, AfterValidator(_checked_address)]
Name = Annotated[str, Field(max_length=MAX_NAME), AfterValidator(_checked_name)]
QueueLength = Annotated[int, BeforeValidator(_checked_number), Field(ge=0, le=MAX_NUMBER)]
Speed = Annotated[int | float, BeforeValidator(_checked_number), Field(ge=0, le=MAX_NUMBER, allow_inf_nan=False)]
# Validation stops at the first error of a list.
Stop = Annotated[str | Annotated[list[str], Field(fail_fast=True)], AfterValidator(_checked_stop)]


class GenerateRequest(BaseModel):
    """A request for an answer: LLaVA's fields with LLaVA's defaults, and fields of this project."""

    model: str = ""
    prompt: str
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    stop: Stop | None = None
    images: Annotated[list[str], Field(fail_fast=True, max_length=MAX_ITEMS)] | None = None
    qlip: QLIPFields | None = None
    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def sampling(self) -> Sampling:
        """Builds the sampling settings.

        Raises:
            ValueError: a setting is out of range.
        """
        greedy = 0 <= self.temperature <= GREEDY_BELOW or self.top_p == 0
        return Sampling(
            temperature=0.0 if greedy else self.temperature,
            top_p=self.top_p or None,
            max_new_tokens=min(self.max_new_tokens, MAX_NEW_TOKENS),
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            seed=self.seed,
            top_k=Sampling.top_k if self.top_k is None else self.top_k,
            min_p=Sampling.min_p if self.min_p is None else self.min_p,
            repetition_penalty=self.repetition_penalty,
        )


class ModelRequest(BaseModel):
    """The name of a model; other fields are ignored."""

    model: Name


class WorkerStatus(BaseModel):
    """The status that a worker reports."""

    model_names: Annotated[list[Name], Field(fail_fast=True, max_length=MAX_ITEMS)]
    speed: Speed
    queue_length: QueueLength
    conv_modes: Annotated[dict[Name, Name], Field(max_length=MAX_ITEMS)] = {}
    """Model -> name of its prompt template; LLaVA's workers state none."""

    def fields(self) -> dict[str, Any]:
        """Lists the fields as they are sent: LLaVA's, and `conv_modes` if any are stated."""
        return self.model_dump(exclude_defaults=True)


class WorkerRequest(BaseModel):
    """The address of a worker."""

    worker_name: WorkerAddress


class RegisterRequest(WorkerRequest):
    """A worker registers."""

    check_heart_beat: bool = True
    worker_status: WorkerStatus | None = None


class HeartBeat(WorkerRequest):
    """A worker reports that it is alive."""

    queue_length: QueueLength


class Frame(BaseModel):
    """The fields of a frame that LLaVA's clients read."""

    text: str
    error_code: int


def invalid(errors: Iterable[Mapping[str, Any]]) -> Failure:
    """Converts validation errors to a failure that names the fields.

    Args:
        errors: As pydantic lists them; the fields' values are not repeated.
    """
    messages = []
    for error in errors:
        where = ".".join(escaped(str(part)[:40]) for part in error["loc"] if part != "body")
        messages.append(f"{where}: {error['msg']}" if where else str(error["msg"]))
    return Failure(400, "invalid_request", "; ".join(messages[:5]))


def parsed(model: type[BaseModel], body: bytes) -> Any:
    """Parses a message, whatever its content type is.

    Raises:
        ValueError: the message is invalid; the error is fit for its sender.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise ValueError(invalid(error.errors(include_input=False, include_url=False)).message) from None


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
