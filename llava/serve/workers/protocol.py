"""The requests of LLaVA's protocol between clients, controllers and workers; `frames.py` has the answers.

Our workers add `conv_modes` to their status: LLaVA's clients read its own fields only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from llava.serve.engine.params import Sampling
from llava.serve.http.addresses import host_of
from llava.serve.http.failures import Failure, shorten_value
from llava.serve.http.limits import MAX_NAME
from llava.serve.openai.fields import QLIPFields
from qlip.command import escape

ANSWERS, STATUS = "/worker_generate_stream", "/worker_get_status"
"""Paths that workers and controllers serve."""

GREEDY_BELOW = 0.001  # a temperature up to this one is greedy
MAX_NEW_TOKENS = 1024
MAX_ITEMS = 1000  # of a list; a server's limit on images is lower
MAX_STOPS = 16
MAX_STOP_LENGTH = 1000  # characters
MAX_NUMBER = 1_000_000  # of a worker's queue length and speed; a higher one is an error


def _checked_address(address: str) -> str:
    host_of(address)
    return address


def _checked_name(name: str) -> str:
    """Refuses names that would forge lines of a log, or write to the terminal that shows it."""
    if not name.isprintable():
        words = "a name holds printable characters only, no control characters such as line feeds, got {name}"
        raise PydanticCustomError("not_printable", words, {"name": shorten_value(name)})
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


def invalid(errors: Iterable[Mapping[str, Any]]) -> Failure:
    """Converts validation errors to a failure that names the fields.

    Args:
        errors: As pydantic lists them; the fields' values are not repeated.
    """
    messages = []
    for error in errors:
        where = ".".join(escape(str(part)[:40]) for part in error["loc"] if part != "body")
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
        raise described(error) from None


def described(error: ValidationError) -> ValueError:
    """Converts a validation error to one that is fit for the sender; it repeats nothing of what was sent."""
    return ValueError(invalid(error.errors(include_input=False, include_url=False)).message)
