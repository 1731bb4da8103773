"""Work that a client waits for ends with the client."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llava.serve.http.disconnects import ClientGoneError, unless_gone


class Connection:
    """A client that hangs up on demand."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}


def test_the_result_of_work_passes_through():
    async def run() -> int:
        return await unless_gone(Connection().receive, asyncio.sleep(0, 3))

    assert asyncio.run(run()) == 3


def test_the_error_of_work_passes_through():
    async def fail() -> None:
        raise LookupError("no such thing")

    async def run() -> None:
        await unless_gone(Connection().receive, fail())

    with pytest.raises(LookupError, match="no such thing"):
        asyncio.run(run())


def test_work_is_cancelled_when_its_client_hangs_up():
    ended: list[str] = []

    async def run() -> None:
        connection = Connection()

        async def work() -> None:
            connection.gone.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        await unless_gone(connection.receive, work())

    with pytest.raises(ClientGoneError):
        asyncio.run(run())
    assert ended == ["cancelled"]


def test_work_is_cancelled_with_the_task_that_awaits_it():
    ended: list[str] = []

    async def run() -> None:
        begun = asyncio.Event()

        async def work() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("cancelled")

        task = asyncio.create_task(unless_gone(Connection().receive, work()))
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert ended == ["cancelled"]
