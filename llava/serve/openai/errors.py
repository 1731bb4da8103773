"""Errors of the OpenAI-compatible API: how a refusal gets from where it arises to its client. Knows no engine."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from llava.serve.engine.errors import ran_out_of_memory
from llava.serve.http.failures import Failure, error_response, explain
from llava.serve.http.metrics import Metrics
from llava.serve.openai.requests import field_path

INTERNAL = "internal_error"  # what `explain` calls a fault that is no request's


class Refusal(Exception):
    """A request is answered with a failure."""

    def __init__(self, failure: Failure, param: str | None = None) -> None:
        """
        Args:
            failure: What its sender is told.
            param: The field that is to blame.
        """
        super().__init__(failure.message)
        self.failure, self.param = failure, param


@contextmanager
def refusing(param: str | None = None) -> Iterator[None]:
    """Turns what the engine and the picture loader raise about a request into its refusal; lets faults pass."""
    try:
        yield
    except Refusal:
        raise
    except Exception as error:
        failure = explain(error)
        if failure.kind == INTERNAL:
            raise
        raise Refusal(failure, param) from error


def add_error_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Gives every error of an application OpenAI's shape, and counts it.

    Args:
        app: Gets the handlers.
        metrics: Where to count.
    """

    def tell(failure: Failure, param: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
        metrics.failed(failure)
        failure = replace(failure, message=clipped(failure.message))
        response = error_response(failure, param and clipped(param))
        response.headers.update(headers or {})
        return response

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return tell(error.failure, error.param)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return tell(*explain_invalid(error))

    @app.exception_handler(HTTPException)
    async def unroutable(request: Request, error: HTTPException) -> Response:
        if ran_out_of_memory(error.__cause__):  # FastAPI takes it for a bad body
            return tell(explain(error.__cause__))
        known = {
            404: ("not_found", replacement_route(request.url.path) or "there is nothing under this path"),
            405: ("method_not_allowed", f"this path does not take {shortened(request.method)}"),
        }
        kind, message = known.get(error.status_code, ("invalid_request", error.detail))
        return tell(Failure(error.status_code, kind, message), headers=error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return tell(explain(RuntimeError()))  # whatever it is, it is no request's fault; the server logs it


def replacement_route(path: str) -> str | None:
    """Names the route to use in place of one of OpenAI's that is missing here; None for other paths."""
    for name in ("completions", "responses"):
        if f"{path}/".startswith(f"/v1/{name}/"):
            return f"this server has no /v1/{name}; send a chat request to /v1/chat/completions"
    return None


def explain_invalid(error: RequestValidationError) -> tuple[Failure, str | None]:
    """Returns what a client is told of a request that has not the form it should, and which field is to blame."""
    if isinstance(error.body, bytes):
        return Failure(400, "invalid_request", "the body must be JSON, with Content-Type: application/json"), None
    first = error.errors()[0]
    loc, kind, words = first["loc"][1:], first["type"], first["msg"]
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
        message += f", got {shortened(first['input'])}"
    return Failure(400, code, message), param


def clipped(text: str, most: int = 500) -> str:
    """Returns a text of at most so many characters: what a client sent need not come back in full length."""
    return text if len(text) <= most else text[: most - 3] + "..."


def shortened(value: object) -> str:
    """Returns a value as text of at most some sixty characters, for an error."""
    words = reprlib.Repr()
    words.maxstring = words.maxother = words.maxlong = 60
    return words.repr(value)
