"""Keeps a worker registered with a controller: registers it, sends heartbeats, and unregisters it at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx

from llava.constants import WORKER_HEART_BEAT_INTERVAL
from llava.serve.http.auth import bearer_header
from llava.serve.workers.calls import TIMEOUT, describe_error
from llava.serve.workers.protocol import WorkerStatus
from llava.tls import tls_context

logger = logging.getLogger(__name__)

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
            worker: The worker's address, for the controller to use.
            status: Reads the worker's current status.
            token: The token that they share.
            interval: Seconds between heartbeats.
        """
        self.controller, self.worker, self.status, self.interval = controller, worker, status, interval
        self.client = httpx.AsyncClient(
            timeout=TIMEOUT, verify=tls_context(), trust_env=False, headers=bearer_header(token)
        )
        self._registered = False
        self._sending = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the heartbeats, without waiting for the controller."""
        self._task = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Stops the heartbeats and unregisters the worker, so that the controller sends it no more requests.

        A heartbeat in flight ends first; otherwise it could register the worker again afterwards.
        """
        if self._task is not None:
            with suppress(asyncio.TimeoutError):  # another class than TimeoutError on Python 3.10
                await asyncio.wait_for(self._sending.acquire(), TIMEOUT)
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            # Otherwise the controller drops a silent worker. HTTPX bounds each read, not the whole reply.
            with suppress(httpx.HTTPError, asyncio.TimeoutError):
                await asyncio.wait_for(self._post("unregister_worker", {}), TIMEOUT)
        await self.client.aclose()

    async def beat(self) -> None:
        """Sends one heartbeat; registers after the first one, and whenever the controller does not know the worker.

        After the first one because a worker may start at the address of an earlier one that is still registered.

        Raises:
            httpx.HTTPError: the controller does not answer, or refuses.
        """
        status = self.status()
        reply = await self._post("receive_heart_beat", {"queue_length": status.queue_length})
        try:
            known = reply.json()["exist"]
        except (ValueError, LookupError, TypeError):
            raise httpx.DecodingError("no controller answers there", request=reply.request) from None
        if not (known and self._registered):
            await self._post("register_worker", {"check_heart_beat": True, "worker_status": status.fields()})
            self._registered = True
            logger.info("registered at %s as %s", self.controller, self.worker)

    async def _keep(self) -> None:
        """Sends heartbeats until cancelled; retries soon after a failure, then after ever longer pauses."""
        pause, reached = FIRST_RETRY, True
        while True:
            try:
                async with self._sending:
                    await self.beat()
                pause, reached = FIRST_RETRY, True
                await asyncio.sleep(self.interval)
            except httpx.HTTPError as error:
                if reached:
                    logger.warning("not registered at %s: %s; trying again", self.controller, describe_error(error))
                reached = False
                await asyncio.sleep(min(pause, self.interval))
                pause *= 2
            except Exception:  # a fault of this worker, which may not recur at the next heartbeat
                logger.exception("a heartbeat failed; trying again")
                await asyncio.sleep(self.interval)

    async def _post(self, route: str, more: dict[str, Any]) -> httpx.Response:
        reply = await self.client.post(f"{self.controller}/{route}", json={"worker_name": self.worker, **more})
        return reply.raise_for_status()
