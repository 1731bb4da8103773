"""The answers that each visitor is waiting for, and how another event ends them.

Gradio's own `cancels` ends all of an event's runs, also one that began after it; a press on its button in the meantime
is dropped; and what the ended run still yields replaces what the other event made.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from functools import wraps
from typing import Any, TypeVar

import gradio as gr

from llava.serve.web.session import STOPPED, Session
from llava.serve.web.visitors import Latest

TALK, COMPARISON = "talk", "comparison"
"""Kinds of runs: a visitor has one of each at a time."""

PATIENCE = 10
"""Seconds to wait for a stopped run; one that Gradio has abandoned between two steps would never end."""

Step = TypeVar("Step")
Handler = Callable[..., AsyncGenerator[tuple[Any, ...], None]]


def keep_outputs(count: int) -> Callable[[Handler], Handler]:
    """Makes a handler that yields nothing leave its `count` outputs as they are; Gradio would empty them."""

    def decorate(handler: Handler) -> Handler:
        @wraps(handler)
        async def run(*args: Any) -> AsyncGenerator[tuple[Any, ...], None]:
            is_silent = True
            async with aclosing(handler(*args)) as steps:
                async for step in steps:
                    is_silent = False
                    yield step
            if is_silent:
                yield (gr.skip(),) * count

        return run

    return decorate


class Run:
    """One answer of the conversation, or one comparison, while it is generated."""

    def __init__(self) -> None:
        self.session: Session | None = None
        """The session that was yielded last, also by an earlier run that this one ended; None before."""
        self.has_begun = self.is_whole = self.is_replaced = False
        """Whether its first step has been yielded, whether its last one has, and whether its session is given up."""
        self.ended = asyncio.Event()
        self._stopped = asyncio.Event()

    @property
    def is_stopped(self) -> bool:
        """Whether nothing more is wanted of it, perhaps from the start."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Makes `until_stopped` end, also during a step."""
        self._stopped.set()

    def mark_stopped(self) -> Session | None:
        """Marks the answer in the session as stopped, where it was: the session to yield; None where it was not.

        A session that is given up needs no mark.
        """
        if self.is_replaced or self.session is None or not (self.has_begun and self.is_stopped and not self.is_whole):
            return None
        self.session = self.session.with_mark(STOPPED)
        return self.session

    async def until_stopped(self, steps: AsyncGenerator[Step, None]) -> AsyncGenerator[Step, None]:
        """Yields steps until the last one or until the run is stopped, and closes them."""
        stopped, step = asyncio.ensure_future(self._stopped.wait()), None
        try:
            while not self.is_stopped:
                step = asyncio.ensure_future(anext(steps, None))
                await asyncio.wait((step, stopped), return_when=asyncio.FIRST_COMPLETED)
                value = step.result() if step.done() else None
                if value is None:
                    self.is_whole = step.done()
                    break
                self.has_begun = True
                yield value
        finally:
            stopped.cancel()
            if step is not None and not step.done():
                step.cancel()
                await asyncio.gather(step, return_exceptions=True)
            await steps.aclose()


class Runs:
    """The runs of all visitors, by the hash of their session; None, a request without a session, has none.

    A browser numbers a visitor's presses from 1, since Gradio starts queued events in any order, some of them much
    later: a run whose press is older than one that has ended such runs ends before its first step. Presses without a
    number, those of programs, count in the order in which they come.
    """

    def __init__(self) -> None:
        self._runs: dict[tuple[str | None, str], Run] = {}
        self._presses: Latest[tuple[str | None, str], int] = Latest()

    def __len__(self) -> int:
        return len(self._runs)

    def is_answering(self, visitor: str | None) -> bool:
        """Whether the conversation waits for an answer."""
        return (visitor, TALK) in self._runs

    @asynccontextmanager
    async def start(self, visitor: str | None, kind: str, press: int | None = None) -> AsyncIterator[Run]:
        """Begins a run of a kind, once the visitor's earlier one has been stopped and has ended.

        It is stopped from the start if a later press has come already.
        """
        run = Run()
        self._record(visitor, press, kind)
        while self._is_last(visitor, press, kind) and (visitor, kind) in self._runs:
            run.session = await self.stop(visitor, kind) or run.session
        if not self._is_last(visitor, press, kind):
            run.stop()
        elif visitor is not None:
            self._runs[visitor, kind] = run
        try:
            yield run
        finally:
            self._end(visitor, kind, run)

    async def stop(
        self, visitor: str | None, *kinds: str, press: int | None = None, replaced: bool = False
    ) -> Session | None:
        """Stops a visitor's runs, by default of all kinds, and waits until they yield nothing more.

        Args:
            visitor: The hash of the visitor's session.
            kinds: Kinds of runs.
            press: Number of the press; runs of earlier ones that are still to begin are stopped as well.
            replaced: Whether the visitor's conversation is emptied. A browser may apply the last step of a run after
                what emptied it, so that step must show the same.

        Returns:
            The session that the last answer of the conversation left; None if there was none, or it left none.
        """
        session = None
        for kind in kinds or (TALK, COMPARISON):
            self._record(visitor, press, kind)
            if (run := self._runs.get((visitor, kind))) is not None:
                run.is_replaced |= replaced
                run.stop()
                with suppress(asyncio.TimeoutError):  # another class than TimeoutError on Python 3.10
                    await asyncio.wait_for(run.ended.wait(), PATIENCE)
                self._end(visitor, kind, run)
                session = run.session or session
        return session

    async def forget(self, visitor: str | None) -> None:
        """Stops the runs of a visitor who has left, and forgets their presses."""
        await self.stop(visitor)
        for kind in (TALK, COMPARISON):
            self._presses.pop((visitor, kind), None)

    def _record(self, visitor: str | None, press: int | None, kind: str) -> None:
        if visitor is not None and press is not None:
            self._presses[visitor, kind] = max(press, self._presses.get((visitor, kind), press))

    def _is_last(self, visitor: str | None, press: int | None, kind: str) -> bool:
        return press is None or press >= self._presses.get((visitor, kind), press)

    def _end(self, visitor: str | None, kind: str, run: Run) -> None:
        if self._runs.get((visitor, kind)) is run:
            del self._runs[visitor, kind]
        run.ended.set()
