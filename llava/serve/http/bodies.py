"""Bodies of requests: received whole before the application runs, each within its limits, all within a budget."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
from collections.abc import Callable
from functools import cache

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava.serve.http.failures import Failure, RequestError, error_response, explain

MAX_VALUES = 1_000_000  # in a body: parsing many tiny ones takes a hundred times their bytes, and stops the event loop
LEAST_BUDGET = 256 * 2**20  # bytes
LARGE = 2**20  # bytes; larger bodies are gathered outside of the allocator's heap, which keeps what it once had
UNCOUNTED = 2**16  # bytes of each body: text never waits for pictures
HELD = "llava.held_body"


class BodyBudget:
    """The bytes that a server holds of all bodies."""

    def __init__(self, most: int) -> None:
        """
        Args:
            most: Bytes, without the first 64 KiB of each body.
        """
        self.most, self.held = most, 0
        self._peak = 0

    def change(self, size: int) -> None:
        """Counts bytes that have come, or gone. When large bodies have all gone, their memory is the system's again."""
        self.held += size
        self._peak = max(self._peak, self.held)
        if self.held == 0 and self._peak > 64 * LARGE:
            self._peak = 0
            return_memory()


class HeldBody:
    """One body's share of the budget; it grows with what arrives, since what is only declared takes no memory."""

    def __init__(self, budget: BodyBudget) -> None:
        """
        Args:
            budget: The server's.
        """
        self.budget, self.counted = budget, 0
        self.taken = False
        """Whether nobody holds the body any more once its reply has begun."""

    def grow(self, size: int) -> bool:
        """Counts a body that has reached a size; gives its share back and says False where that is too much.

        At once, for else all bodies that grow in this moment would be refused, where one is enough.
        """
        counted = max(0, size - UNCOUNTED)
        if self.budget.held - self.counted + counted > self.budget.most:
            self.release()
            return False
        self.budget.change(counted - self.counted)
        self.counted = counted
        return True

    def release(self) -> None:
        """Gives the share back."""
        counted, self.counted = self.counted, 0
        self.budget.change(-counted)


class BodyBuffer:
    """Gathers a body's pieces."""

    def __init__(self, most: int) -> None:
        """
        Args:
            most: Bytes that it may come to.
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
            self._large = mmap.mmap(-1, max(self.most, self.size))  # pages that nobody writes to take no memory
            self._large.write(b"".join(self._pieces))
            self._pieces.clear()

    def take(self) -> bytes:
        """Gives the body, and keeps nothing."""
        body = b"".join(self._pieces) if self._large is None else self._large[: self.size]
        self.clear()
        return body

    def clear(self) -> None:
        """Frees what has been gathered."""
        self._pieces.clear()
        if self._large is not None:
            self._large.close()
            self._large = None


@cache
def _trimmer() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`; None where the C library is another."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


def return_memory() -> None:
    """Gives the memory that the allocator keeps for later back to the system, where it can be asked to."""
    trim = _trimmer()
    if trim is not None:
        trim(0)


class BodyLimit:
    """ASGI middleware: receives the whole body before the application runs; refuses one too large or too slow.

    A body that could hold more than `MAX_VALUES` JSON values is too large whatever its bytes. One that does not fit
    into memory beside the others is refused at once: bodies that waited for each other's end could wait for ever.
    """

    def __init__(self, app: ASGIApp, max_body: int, timeout: float, budget: BodyBudget | None = None) -> None:
        """
        Args:
            app: The application.
            max_body: Most bytes.
            timeout: Seconds.
            budget: What all bodies share; by default one of this middleware's own, which holds four of the largest.
        """
        self.app, self.max_body, self.timeout = app, max_body, timeout
        self.budget = budget or BodyBudget(max(LEAST_BUDGET, 4 * max_body))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] != "http" or HELD in scope:  # an application around this one has received the body
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
        if message is None:  # the client has gone
            return
        messages = [message]
        del message  # so that only the reader holds the body

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        async def release_when_taken(message: Message) -> None:
            if held.taken and message["type"] == "http.response.start":
                held.release()
            await send(message)

        await self.app(scope, replay, release_when_taken)

    async def _receive(self, scope: Scope, receive: Receive, held: HeldBody) -> Message | None:
        """The body as one message; None if its client goes away.

        Raises:
            RequestError: it exceeds a limit.
        """
        too_large = RequestError(413, "request_too_large", f"the request's body is larger than {self.max_body:,} bytes")
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.max_body:
            raise too_large
        body = BodyBuffer(self.max_body)
        try:
            return await self._gather(body, receive, held, too_large)
        finally:
            body.clear()  # an error's traceback would keep it until the next collection of garbage

    async def _gather(
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
                raise RequestError(413, "request_too_large", f"the body holds more than {MAX_VALUES:,} values")
            if not held.grow(body.size + len(piece)):
                said = f"the requests that this server has taken on hold {self.budget.most:,} bytes, the most allowed"
                raise RequestError(503, "busy", f"{said}; try again, or send less than {UNCOUNTED:,} bytes", 1)
            body.add(piece)
            if not message.get("more_body", False):
                return {"type": "http.request", "body": body.take(), "more_body": False}


def mark_taken(scope: Scope) -> None:
    """Notes that nobody holds a request's body any more once its reply has begun."""
    if HELD in scope:
        scope[HELD].taken = True


async def take_body(request: Request) -> bytes:
    """Reads a request's body, of which the request keeps nothing: who is given it must drop it before the reply begins.

    Raises:
        starlette.requests.ClientDisconnect: the client has gone.
    """
    pieces = [piece async for piece in request.stream() if piece]
    mark_taken(request.scope)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
