"""A worker's place in a controller's register: taken, kept by heartbeats, taken anew when lost, given up at the end.

Knows neither what the worker does nor how requests reach it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx

from llava.constants import WORKER_HEART_BEAT_INTERVAL
from llava.serve.http.auth import bearer_header
from llava.serve.workers.protocol import WorkerStatus

logger = logging.getLogger(__name__)

TIMEOUT = 5.0  # seconds that a controller may take for an answer
FIRST_RETRY = 0.5  # seconds


class Registration:
    """Keeps a worker registered while it runs."""

    def __init__(
        self,
        controller: str,
        worker: str,
        status: Callable[[], WorkerStatus],
        token: str | None = None,
        interval: float = WORKER_HEART_BEAT_INTERVAL,
    ) -> None:
        """
        Args:
            controller: Its address.
            worker: The worker's address, as the controller is to use it.
            status: Says how the worker is.
            token: The secret that they share.
            interval: Seconds between heartbeats.
        """
        self.controller, self.worker, self.status, self.interval = controller, worker, status, interval
        self.client = httpx.AsyncClient(timeout=TIMEOUT, trust_env=False, headers=bearer_header(token))
        self._registered = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins, without waiting for the controller."""
        self._task = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Ends, and tells the controller, so that it sends nothing any more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            with suppress(httpx.HTTPError):  # it is gone, or does not know this; then silence must tell it
                await self._post("unregister_worker", {})
        await self.client.aclose()

    async def beat(self) -> None:
        """Sends one heartbeat, and registers where that was the first one, or for an unknown worker.

        A worker that has just started may bear the address of an earlier one, which the controller still knows.

        Raises:
            httpx.HTTPError: the controller is not there, or refuses.
        """
        status = self.status()
        reply = await self._post("receive_heart_beat", {"queue_length": status.queue_length})
        try:
            known = reply.json()["exist"]
        except (ValueError, LookupError, TypeError):
            raise httpx.DecodingError("no controller answers there", request=reply.request) from None
        if not (known and self._registered):
            await self._post("register_worker", {"check_heart_beat": True, "worker_status": status.model_dump()})
            self._registered = True
            logger.info("registered at %s as %s", self.controller, self.worker)

    async def _keep(self) -> None:
        """Heartbeats for ever; after a failure the next one comes soon, then later and later."""
        pause, reached = FIRST_RETRY, True
        while True:
            try:
                await self.beat()
                pause, reached = FIRST_RETRY, True
                await asyncio.sleep(self.interval)
            except httpx.HTTPError as error:
                if reached:
                    logger.warning("not registered at %s: %s; trying again", self.controller, explained(error))
                reached = False
                await asyncio.sleep(min(pause, self.interval))
                pause *= 2

    async def _post(self, route: str, more: dict[str, Any]) -> httpx.Response:
        reply = await self.client.post(f"{self.controller}/{route}", json={"worker_name": self.worker, **more})
        return reply.raise_for_status()


def not_answered(error: httpx.HTTPError, controller: str) -> ConnectionError:
    """Makes the error of a program that asked a controller in vain, for the person who runs it."""
    if isinstance(error, httpx.HTTPStatusError):
        return ConnectionError(f"the controller at {controller} refused: {explained(error)}")
    return ConnectionError(
        f"no controller answers at {controller} ({explained(error)}); start one by python -m llava.serve.controller, or"
        " name another by --controller-address"
    )


def explained(error: Exception) -> str:
    """Returns why a server did not do as asked, in its own words where it is one of ours."""
    if not isinstance(error, httpx.HTTPStatusError):
        return str(error) or type(error).__name__
    try:
        return str(error.response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"HTTP {error.response.status_code}"
