"""Errors of the OpenAI-compatible API, from the exception to the reply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from llava.serve.engine.errors import ran_out_of_memory
from llava.serve.http.failures import Failure, explain, explain_routing, shorten_value
from llava.serve.http.metrics import Metrics
from llava.serve.http.replies import error_response
from llava.serve.http.routing import route_path
from llava.serve.openai.requests import field_path

INTERNAL = "internal_error"  # the kind that `explain` gives to an error of the server


class RequestRefusedError(Exception):
    """A refused request."""

    def __init__(self, failure: Failure, param: str | None = None) -> None:
        """
        Args:
            failure: What the client reads.
            param: The field of the request that caused it.
        """
        super().__init__(failure.message)
        self.failure, self.param = failure, param


@contextmanager
def refusing(param: str | None = None) -> Iterator[None]:
    """Converts errors of the request, raised by engine or image loader, to RequestRefusedError; passes others on."""
    try:
        yield
    except RequestRefusedError:
        raise
    except Exception as error:
        failure = explain(error)
        if failure.kind == INTERNAL:
            raise
        raise RequestRefusedError(failure, param) from error


def add_error_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Reports every error of an application in OpenAI's shape, and counts it.

    Args:
        app: Gets the handlers.
        metrics: Gets the counts.
    """

    def report(failure: Failure, param: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
        metrics.failed(failure)
        failure = replace(failure, message=clip_text(failure.message))
        return error_response(failure, param and clip_text(param), headers)

    @app.exception_handler(RequestRefusedError)
    async def refused(request: Request, error: RequestRefusedError) -> Response:
        return report(error.failure, error.param)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return report(*explain_invalid(error))

    @app.exception_handler(HTTPException)
    async def unroutable(request: Request, error: HTTPException) -> Response:
        if ran_out_of_memory(error.__cause__):  # FastAPI raises it as a malformed body
            return report(explain(error.__cause__))
        failure = explain_routing(error.status_code, request.method, error.detail)
        if failure.status == 404 and (words := replacement_route(route_path(request.scope))):
            failure = replace(failure, message=words)
        return report(failure, headers=error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return report(explain(RuntimeError()))  # an error of the server, whatever its type; Starlette logs it


def replacement_route(path: str) -> str | None:
    """Suggests the route to use instead of one of OpenAI's that is missing here; None for other paths."""
    for name in ("completions", "responses"):
        if f"{path}/".startswith(f"/v1/{name}/"):
            return f"this server has no /v1/{name}; send a chat request to /v1/chat/completions"
    return None


def explain_invalid(error: RequestValidationError) -> tuple[Failure, str | None]:
    """Converts a validation error to a failure and the path of the field that caused it."""
    if isinstance(error.body, bytes):
        return Failure(400, "invalid_request", "the body must be JSON, with Content-Type: application/json"), None
    first = error.errors()[0]
    loc, kind, words = first["loc"][1:], first["type"], first["msg"]
    if error.body is None and kind == "missing":  # otherwise it is null
        return Failure(400, "invalid_request", "the body is empty; it must be a JSON object"), None
    if kind == "union_tag_not_found":
        loc, kind, words = (*loc, "", "type"), "missing", "Field required"
    missing = kind == "missing"
    param = field_path(loc, error.body, missing) or None
    kinds = {name: name for name in ("unknown_parameter", "unsupported_value")}
    code = (kinds | {"missing": "missing_required_parameter"}).get(kind, "invalid_value")
    message = f"{param or 'the body'}: {words}"
    if not missing and first["input"] is None:
        message += ", got null"
    elif not missing and isinstance(first["input"], (str, int, float)):
        message += f", got {shorten_value(first['input'])}"
    return Failure(400, code, message), param


def clip_text(text: str, most: int = 500) -> str:
    """Truncates a text to `most` characters: a reply need not repeat all of a request."""
    return text if len(text) <= most else text[: most - 3] + "..."
