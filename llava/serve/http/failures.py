"""What can go wrong with a request, and what its sender is told: a status, a kind and a text.

The one place where an exception becomes words for a client. A library's own text is never among them, since it may
hold paths, addresses or keys. Knows neither models nor servers.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse

from llava.images import ImageError
from llava.serve.engine.errors import EngineClosed, GenerationError, Overloaded, PromptTooLong, ran_out_of_memory

logger = logging.getLogger(__name__)


class RequestError(Exception):
    """A request is refused for a reason of its server's own."""

    def __init__(self, status: int, kind: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.retry_after = status, kind, retry_after


@dataclass(frozen=True)
class Failure:
    """What a client is told."""

    status: int
    """Of HTTP."""
    kind: str
    """A word for programs, such as "invalid_image"."""
    message: str
    """A sentence for people."""
    retry_after: int | None = None
    """Seconds after which to try again, where that makes sense."""

    @property
    def type(self) -> str:
        """OpenAI's word for errors of this status."""
        known = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        return known.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    @property
    def headers(self) -> dict[str, str]:
        """Those that a reply of this status should carry."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})

    def body(self, param: str | None = None) -> dict[str, Any]:
        """The reply as JSON, for OpenAI's clients and for LLaVA's, which look for `text` and `error_code`.

        Args:
            param: The request's field that is to blame.
        """
        error = {"message": self.message, "type": self.type, "param": param, "code": self.kind}
        return {"error": error, "text": self.message, "error_code": 1}


def explain(error: BaseException) -> Failure:
    """Says what an exception means to the client whose request raised it; what the client is not told is logged.

    ValueError and TypeError are taken for the request's fault: raise something else for one's own.
    """
    failure = _failure(error)
    if isinstance(error, RequestError) and failure.status >= 500:
        logger.warning("%s", failure.message)
    elif failure.status >= 500 and not isinstance(error, EngineClosed):
        logger.error("%s", failure.message, exc_info=error)
    return failure


def _failure(error: BaseException) -> Failure:
    message = str(error)
    match error:
        case RequestError():
            return Failure(error.status, error.kind, message, error.retry_after)
        case ImageError():
            return Failure(400, "invalid_image", message)
        case PromptTooLong():
            return Failure(400, "context_length_exceeded", message)
        case Overloaded():
            return Failure(429, "overloaded", message, error.retry_after)
        case EngineClosed():
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


def error_response(failure: Failure, param: str | None = None) -> JSONResponse:
    """Returns the reply that tells a client of a failure."""
    return JSONResponse(failure.body(param), failure.status, failure.headers)
