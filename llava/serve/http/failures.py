"""Failures of requests: an exception becomes the status, the kind and the message that a client reads.

This is the only place that chooses words for remote clients. A library's own message is never passed on, since it may
hold paths, addresses or keys.
"""

from __future__ import annotations

import logging
import reprlib
from dataclasses import dataclass
from typing import Any

from llava.serve.engine.errors import (
    EngineClosedError,
    GenerationError,
    OverloadedError,
    PromptTooLongError,
    ran_out_of_memory,
)
from qlip.images.limits import ImageError

logger = logging.getLogger(__name__)


class RequestError(Exception):
    """A request that the server itself refuses, with the status and the words for its client."""

    def __init__(self, status: int, kind: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.retry_after = status, kind, retry_after


@dataclass(frozen=True)
class Failure:
    """What a client reads about a failed request."""

    status: int
    """HTTP status."""
    kind: str
    """A code for programs, such as "invalid_image"."""
    message: str
    """A sentence for people."""
    retry_after: int | None = None
    """Seconds after which to try again, if that makes sense."""

    @property
    def type(self) -> str:
        """OpenAI's name for errors of this status."""
        known = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        return known.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    @property
    def headers(self) -> dict[str, str]:
        """Headers for a reply of this status."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})

    def body(self, param: str | None = None) -> dict[str, Any]:
        """Builds the JSON reply: `error` for OpenAI's clients, `text` and `error_code` for LLaVA's.

        Args:
            param: The field of the request that caused the failure.
        """
        error = {"message": self.message, "type": self.type, "param": param, "code": self.kind}
        return {"error": error, "text": self.message, "error_code": 1}


def explain(error: BaseException) -> Failure:
    """Converts an exception to the failure that its client reads; logs what the client must not read.

    ValueError and TypeError count as errors of the request: raise another type for errors of the server.
    """
    failure = _failure(error)
    if isinstance(error, RequestError) and failure.status >= 500:
        logger.warning("%s", failure.message)
    elif failure.status >= 500 and not isinstance(error, EngineClosedError):
        logger.error("%s", failure.message, exc_info=error)
    return failure


def explain_routing(status: int, method: str, detail: str) -> Failure:
    """Describes a router's refusal: an unknown path (404), an unsupported method (405), or its `detail`."""
    if status == 404:
        return Failure(404, "not_found", "there is nothing under this path")
    if status == 405:
        return Failure(405, "method_not_allowed", f"this path does not take {shorten_value(method)}")
    return Failure(status, "invalid_request", detail)


def shorten_value(value: object) -> str:
    """Formats a value for an error, in about sixty characters at most."""
    words = reprlib.Repr()
    words.maxstring = words.maxother = words.maxlong = 60
    return words.repr(value)


def _failure(error: BaseException) -> Failure:
    message = str(error)
    match error:
        case RequestError():
            return Failure(error.status, error.kind, message, error.retry_after)
        case ImageError():
            return Failure(400, "invalid_image", message)
        case PromptTooLongError():
            return Failure(400, "context_length_exceeded", message)
        case OverloadedError():
            return Failure(429, "overloaded", message, error.retry_after)
        case EngineClosedError():
            return Failure(503, "shutting_down", message, retry_after=10)
        case GenerationError(out_of_memory=True):
            return Failure(503, "out_of_memory", message, retry_after=10)
        case _ if ran_out_of_memory(error) or (
            isinstance(error, GenerationError) and ran_out_of_memory(error.__cause__)
        ):
            message = "the server ran out of memory; try again, with fewer or smaller pictures or a shorter prompt"
            return Failure(503, "out_of_memory", message, retry_after=10)
        case GenerationError():
            return Failure(500, "model_failed", message)
        case ValueError() | TypeError():
            return Failure(400, "invalid_request", message)
    return Failure(500, "internal_error", "the server failed; its log says why")
