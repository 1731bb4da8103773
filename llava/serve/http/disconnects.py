"""Cancels the work on a reply when its client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive

T = TypeVar("T")

CLIENT_GONE = 499  # nginx's status for a client that disconnected; it appears in the metrics


class ClientGoneError(Exception):
    """A client disconnected before its reply began."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Awaits `work`; cancels it as soon as the client disconnects.

    Args:
        receive: The request's ASGI channel; its body must have been read.
        work: What the client waits for.

    Raises:
        ClientGoneError: the client disconnected first.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(wait_until_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def reply_unless_gone(receive: Receive, work: Coroutine[Any, Any, Response]) -> Response:
    """Awaits a reply as `unless_gone` does; after a disconnect the reply is empty, with status 499."""
    try:
        return await unless_gone(receive, work)
    except ClientGoneError:
        return Response(status_code=CLIENT_GONE)


async def wait_until_gone(receive: Receive) -> None:
    """Waits until the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
