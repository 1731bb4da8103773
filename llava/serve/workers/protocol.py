"""LLaVA's wire protocol: the requests of clients, workers and controllers, and the frames of a streamed answer.

A frame is a JSON object and a zero byte; it holds the prompt and all of the answer so far, and an error code. Fields
that LLaVA does not know may be added to a frame, since its clients look at these two only. Knows neither a model nor
who talks to whom.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from enum import IntEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from llava.serve.engine.params import Sampling
from llava.serve.http.failures import Failure
from llava.serve.openai.requests import QLIPFields
from llava.serve.workers.auth import host_of

GREEDY_BELOW = 0.001  # a temperature no higher takes the likeliest token
MAX_NEW_TOKENS = 1024
MAX_ITEMS = 1000  # of a list; what fewer pictures a request may hold, its server says
MAX_STOPS = 16
MAX_STOP_LENGTH = 1000  # characters
MAX_NUMBER = 1_000_000  # of what a worker says of itself; a longer queue or a higher speed is a fault
END = b"\0"


class ErrorCode(IntEnum):
    """What LLaVA's clients look for in a frame."""

    NONE = 0
    WORKER = 1
    """The worker refused the request or failed."""
    NO_WORKER = 2
    """No worker serves the model."""
    UNREACHABLE = 3
    """The worker could not be reached, or has gone."""


def _checked_address(address: str) -> str:
    host_of(address)
    return address


def _checked_stop(stop: str | list[str]) -> str | list[str]:
    """Each is looked for after each token, by the one thread that answers everybody."""
    texts = [stop] if isinstance(stop, str) else stop
    longest = max(map(len, texts), default=0)
    if len(texts) > MAX_STOPS or longest > MAX_STOP_LENGTH:
        found = f"{len(texts):,} texts, the longest of {longest:,} characters"
        raise ValueError(f"{found}; at most {MAX_STOPS} of at most {MAX_STOP_LENGTH:,} characters each are allowed")
    return stop


def _checked_number(value: Any) -> Any:
    """Refuses what no worker can mean; what is no number at all is for its field to refuse."""
    if isinstance(value, bool) or (isinstance(value, int | float) and not 0 <= value <= MAX_NUMBER):
        got = "a number of more than 20 digits" if isinstance(value, int) and abs(value) >= 10**20 else repr(value)
        raise PydanticCustomError("out_of_range", f"must be a number from 0 to {MAX_NUMBER:,}, got {got}")
    return value


WorkerAddress = Annotated[str, AfterValidator(_checked_address)]
Name = Annotated[str, Field(max_length=500)]
QueueLength = Annotated[int, BeforeValidator(_checked_number), Field(ge=0, le=MAX_NUMBER)]
Speed = Annotated[int | float, BeforeValidator(_checked_number), Field(ge=0, le=MAX_NUMBER, allow_inf_nan=False)]
# Of the many errors that a list may hold, the first one is enough.
Stop = Annotated[str | Annotated[list[str], Field(fail_fast=True)], AfterValidator(_checked_stop)]


class GenerateRequest(BaseModel):
    """What a client asks of a worker: LLaVA's fields, with LLaVA's defaults, and some of this project's own."""

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
        """Returns how to choose tokens.

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
    """Names a model; other fields pass unread."""

    model: Name


class WorkerStatus(BaseModel):
    """What a worker says of itself."""

    model_names: Annotated[list[Name], Field(fail_fast=True, max_length=MAX_ITEMS)]
    speed: Speed
    queue_length: QueueLength


class WorkerRequest(BaseModel):
    """Names a worker by its address."""

    worker_name: WorkerAddress


class RegisterRequest(WorkerRequest):
    """A worker offers its service."""

    check_heart_beat: bool = True
    worker_status: WorkerStatus | None = None


class HeartBeat(WorkerRequest):
    """A worker is alive."""

    queue_length: QueueLength


class Frame(BaseModel):
    """What LLaVA's clients look for in a frame."""

    text: str
    error_code: int


def invalid(errors: Iterable[Mapping[str, Any]]) -> Failure:
    """Says what is wrong with a request's fields.

    Args:
        errors: As pydantic lists them; what the fields held is not repeated.
    """
    said = []
    for error in errors:
        where = ".".join(str(part)[:40] for part in error["loc"] if part != "body")
        said.append(f"{where}: {error['msg']}" if where else str(error["msg"]))
    return Failure(400, "invalid_request", "; ".join(said[:5]))


def parsed(model: type[BaseModel], body: bytes) -> Any:
    """Reads a request's body, whatever its content type says.

    Raises:
        ValueError: with a text for the client.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise ValueError(invalid(error.errors(include_input=False, include_url=False)).message) from None


def frame(text: str, more: Mapping[str, Any] | None = None) -> bytes:
    """Returns a frame of an answer that goes well.

    Args:
        text: The prompt and all of the answer so far.
        more: Further fields.
    """
    return json.dumps({"text": text, "error_code": ErrorCode.NONE, **(more or {})}).encode() + END


def error_frame(failure: Failure, code: ErrorCode = ErrorCode.WORKER) -> bytes:
    """Returns the frame that tells of a failure."""
    return json.dumps({**failure.body(), "error_code": code}).encode() + END


def error_reply(failure: Failure, code: ErrorCode = ErrorCode.WORKER) -> Response:
    """Returns a reply that tells of a failure by its status and by one frame, for clients that look at either."""
    return Response(error_frame(failure, code), failure.status, failure.headers, "application/octet-stream")


class FrameSplitter:
    """Cuts bytes, as they come, into frames."""

    def __init__(self, max_frame: int = 2**26) -> None:
        """
        Args:
            max_frame: Most bytes of a frame.
        """
        self.max_frame = max_frame
        self._rest = b""

    def push(self, data: bytes) -> list[bytes]:
        """Returns the frames that are complete now, without their zero bytes.

        Raises:
            ValueError: a frame is too long.
        """
        *frames, self._rest = (self._rest + data).split(END)
        if len(self._rest) > self.max_frame:
            raise ValueError(f"a frame is longer than {self.max_frame:,} bytes")
        return [frame for frame in frames if frame]

    def finish(self) -> list[bytes]:
        """Returns what is left, at the end of the stream: a last frame without its zero byte, or nothing."""
        return [self._rest] if self._rest.strip() else []


class FrameStream(StreamingResponse):
    """A streamed reply that lets go of where its frames come from, however it ends and be it before the first one."""

    media_type = "application/octet-stream"

    def __init__(self, frames: AsyncIterator[bytes], release: Callable[[], Awaitable[None]]) -> None:
        """
        Args:
            frames: The frames, with their zero bytes.
            release: Called once, when the last frame was sent or the reader has gone.
        """
        super().__init__(frames, headers={"X-Accel-Buffering": "no"})  # nginx would hold frames back
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the reply."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._release()
