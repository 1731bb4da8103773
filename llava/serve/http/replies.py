"""Replies that report a failure, as an ASGI response or as the bytes of a connection that ends with it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import JSONResponse

from llava.serve.http.failures import Failure


def error_response(
    failure: Failure, param: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Builds the reply that reports a failure.

    Args:
        failure: What the client reads.
        param: The field of the request that caused it.
        headers: Further headers, such as Allow.
    """
    return JSONResponse(failure.body(param), failure.status, {**failure.headers, **(headers or {})})


def raw_reply(failure: Failure) -> bytes:
    """Formats a failure as the bytes of a reply after which the connection is closed."""
    body = json.dumps(failure.body()).encode()
    headers = {"Content-Type": "application/json", "Content-Length": len(body), "Connection": "close"}
    lines = [f"{name}: {value}" for name, value in (headers | failure.headers).items()]
    reason = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}[failure.status]
    return "\r\n".join([f"HTTP/1.1 {failure.status} {reason}", *lines, "", ""]).encode() + body
