"""Notices that a client has hung up while the server still works on its reply."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive

T = TypeVar("T")

CLIENT_GONE = 499  # status of a reply that nobody reads, as nginx has it; it is counted


class ClientGone(Exception):
    """A client hung up before its reply had begun."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Awaits `work`, and cancels it as soon as the client hangs up.

    Args:
        receive: The request's ASGI channel; its body must have been read.
        work: What the client waits for.

    Raises:
        ClientGone: the client hung up first.
        Others: what `work` raises.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(wait_until_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def reply_unless_gone(receive: Receive, work: Coroutine[Any, Any, Response]) -> Response:
    """Awaits a reply as `unless_gone`; for a client that hung up it is an empty one, which is counted."""
    try:
        return await unless_gone(receive, work)
    except ClientGone:
        return Response(status_code=CLIENT_GONE)


async def wait_until_gone(receive: Receive) -> None:
    """Returns when the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass
