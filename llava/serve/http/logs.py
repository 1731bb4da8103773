"""Log messages of servers: their format, and a warning of a server open to everybody."""

from __future__ import annotations

import logging
from collections.abc import Collection

from llava.serve.http.addresses import is_loopback

logger = logging.getLogger(__name__)


def log_to_console() -> None:
    """Logs to stderr, one line each, without the messages of HTTP clients."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(levelname)s | %(name)s | %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)


def warn_of_open_port(host: str, keys: Collection[str]) -> None:
    """Logs a warning if a server accepts requests from other machines without a key."""
    if not keys and not is_loopback(host):
        logger.warning("anyone who reaches %s may use this server; --api-key KEY lets only clients with a key in", host)
