"""Request bodies: received whole before the application runs, each within its limit, all within one memory budget."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
from collections.abc import Callable
from functools import cache

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava.serve.http.failures import Failure, RequestError, explain
from llava.serve.http.replies import error_response

MAX_VALUES = 150_000
"""Most JSON values of a body: parsing and checking them takes up to a hundred times their bytes, and the event loop for
about 2 us each. Counted are brackets and commas, in texts as well, so that the longest text (`max_prompt`) passes."""
LEAST_BUDGET = 256 * 2**20  # bytes
LARGE = 2**20  # bytes; larger bodies are collected outside the allocator's heap, which does not shrink by itself
UNCOUNTED = 2**16  # bytes of each body that do not count: requests without images always fit
HELD = "llava.held_body"


class BodyBudget:
    """The number of bytes that a server holds of all bodies together."""

    def __init__(self, most: int) -> None:
        """
        Args:
            most: Bytes allowed; the first 64 KiB of each body do not count.
        """
        self.most, self.held = most, 0
        self._peak = 0

    def change(self, size: int) -> None:
        """Adds to the bytes held, or subtracts. Returns memory to the system after the last of many large bodies."""
        self.held += size
        self._peak = max(self._peak, self.held)
        if self.held == 0 and self._peak > 64 * LARGE:
            self._peak = 0
            return_memory()


class HeldBody:
    """One body's share of the budget; it grows with the bytes received, since declared ones take no memory."""

    def __init__(self, budget: BodyBudget) -> None:
        """
        Args:
            budget: The server's budget.
        """
        self.budget, self.counted = budget, 0
        self.taken = False
        """Whether the application drops the body before its reply begins."""

    def grow(self, size: int) -> bool:
        """Counts a body that has reached `size` bytes.

        Returns:
            False if that exceeds the budget. The share is then released at once: otherwise all bodies that grow at
            this moment would be refused, where refusing one is enough.
        """
        counted = max(0, size - UNCOUNTED)
        if self.budget.held - self.counted + counted > self.budget.most:
            self.release()
            return False
        self.budget.change(counted - self.counted)
        self.counted = counted
        return True

    def release(self) -> None:
        """Releases the share."""
        counted, self.counted = self.counted, 0
        self.budget.change(-counted)


class BodyBuffer:
    """Collects the pieces of a body."""

    def __init__(self, most: int) -> None:
        """
        Args:
            most: Largest size, in bytes.
        """
        self.most, self.size = most, 0
        self._pieces: list[bytes] = []
        self._large: mmap.mmap | None = None

    def add(self, piece: bytes) -> None:
        """Adds a piece."""
        self.size += len(piece)
        if self._large is not None:
            self._large.write(piece)
            return
        self._pieces.append(piece)
        if self.size > LARGE:
            self._large = mmap.mmap(-1, max(self.most, self.size))  # unwritten pages take no memory
            self._large.write(b"".join(self._pieces))
            self._pieces.clear()

    def take(self) -> bytes:
        """Joins the pieces; the buffer is empty afterwards."""
        body = b"".join(self._pieces) if self._large is None else self._large[: self.size]
        self.clear()
        return body

    def clear(self) -> None:
        """Frees the pieces."""
        self._pieces.clear()
        if self._large is not None:
            self._large.close()
            self._large = None


@cache
def _trimmer() -> Callable[[int], int] | None:
    """Finds glibc's `malloc_trim`; None with other C libraries."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


def return_memory() -> None:
    """Gives the allocator's free memory back to the system, if the C library can."""
    trim = _trimmer()
    if trim is not None:
        trim(0)


class BodyLimit:
    """ASGI middleware: receives the whole body before the application runs; refuses one that is too large or too slow.

    A body that may hold more than `MAX_VALUES` JSON values is too large whatever its size in bytes. One that exceeds
    the memory budget is refused at once: bodies that waited for each other could deadlock.
    """

    def __init__(self, app: ASGIApp, max_body: int, timeout: float, budget: BodyBudget | None = None) -> None:
        """
        Args:
            app: The application.
            max_body: Most bytes.
            timeout: Seconds.
            budget: Shared by all bodies; by default a separate one that holds four of the largest.
        """
        self.app, self.max_body, self.timeout = app, max_body, timeout
        self.budget = budget or BodyBudget(max(LEAST_BUDGET, 4 * max_body))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] != "http" or HELD in scope:  # an outer application has received the body
            await self.app(scope, receive, send)
            return
        scope[HELD] = held = HeldBody(self.budget)
        try:
            await self._handle(scope, receive, send, held)
        finally:
            held.release()

    async def _handle(self, scope: Scope, receive: Receive, send: Send, held: HeldBody) -> None:
        try:
            message = await asyncio.wait_for(self._receive(scope, receive, held), self.timeout)
        except asyncio.TimeoutError:
            held.release()
            failure = Failure(408, "request_timeout", f"the request's body took longer than {self.timeout:g} seconds")
            await error_response(failure)(scope, receive, send)
            return
        except RequestError as error:
            held.release()
            await error_response(explain(error))(scope, receive, send)
            return
        if message is None:  # the client has disconnected
            return
        messages = [message]
        del message  # so that only the application holds the body

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        async def release_on_reply(message: Message) -> None:
            if held.taken and message["type"] == "http.response.start":
                held.release()
            await send(message)

        await self.app(scope, replay, release_on_reply)

    async def _receive(self, scope: Scope, receive: Receive, held: HeldBody) -> Message | None:
        """Receives the body as one message; None if the client disconnects.

        Raises:
            RequestError: the body exceeds a limit.
        """
        too_large = RequestError(413, "request_too_large", f"the request's body is larger than {self.max_body:,} bytes")
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.max_body:
            raise too_large
        body = BodyBuffer(self.max_body)
        try:
            return await self._collect(body, receive, held, too_large)
        finally:
            body.clear()  # an error's traceback would keep it until the next garbage collection

    async def _collect(
        self, body: BodyBuffer, receive: Receive, held: HeldBody, too_large: RequestError
    ) -> Message | None:
        values = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            values += sum(map(piece.count, (b"[", b"{", b",")))
            if body.size + len(piece) > self.max_body:
                raise too_large
            if values > MAX_VALUES:
                raise RequestError(
                    413, "request_too_large", f"the body holds more than {MAX_VALUES:,} brackets and commas"
                )
            if not held.grow(body.size + len(piece)):
                full = f"the requests that this server has accepted hold {self.budget.most:,} bytes, the most allowed"
                raise RequestError(503, "busy", f"{full}; try again, or send less than {UNCOUNTED:,} bytes", 1)
            body.add(piece)
            if not message.get("more_body", False):
                return {"type": "http.request", "body": body.take(), "more_body": False}


def mark_taken(scope: Scope) -> None:
    """Records that the application drops a request's body before its reply begins."""
    if HELD in scope:
        scope[HELD].taken = True


async def take_body(request: Request) -> bytes:
    """Reads a request's body; the request keeps no copy, and the caller must drop it before the reply begins.

    Raises:
        starlette.requests.ClientDisconnect: the client has disconnected.
    """
    pieces = [piece async for piece in request.stream() if piece]
    mark_taken(request.scope)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
