"""Whom a controller takes for a worker: the secret that they share, and addresses that are this very machine's.

Knows neither what workers do nor how requests reach them.
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import re
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

import httpx

from llava.addresses import is_host_name
from llava.serve.http.auth import bearer_token, is_one_of
from llava.serve.http.failures import Failure, RequestError, error_response

logger = logging.getLogger(__name__)

WORKER_TOKEN_VARIABLE = "LLAVA_WORKER_TOKEN"
MAX_ADDRESS = 300  # characters

_ADDRESS = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[0-9A-Za-z]([0-9A-Za-z._-]*[0-9A-Za-z])?)(:([0-9]{1,5}))?")


def is_loopback(host: str) -> bool:
    """Whether a host names this very machine beyond doubt: "localhost" or a loopback address, in its usual notation."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_of(address: str) -> str:
    """Returns the host of a worker's address, without brackets.

    Raises:
        ValueError: it is not http(s)://host[:port] and nothing else, or no machine's own address.
    """
    match = _ADDRESS.fullmatch(address) if len(address) <= MAX_ADDRESS else None
    if match is None or not 0 < int(match[4] or 80) < 2**16:
        raise ValueError("an address must read http://HOST:PORT or https://HOST:PORT, without path or password")
    host, bracketed = match[1].strip("[]"), match[1].startswith("[")
    try:
        ip = ipaddress.IPv6Address(host) if bracketed else ipaddress.ip_address(host)
    except ValueError:
        if bracketed:
            raise ValueError("the address in brackets is not one of IPv6") from None
        if not _can_be_asked(address):
            raise ValueError("a host name has parts of 1 to 63 characters, and after xn-- a valid encoding") from None
        return host
    if ip.is_unspecified or ip.is_multicast or ip.is_link_local:
        raise ValueError("an address must be the worker's own, not a wildcard, a group's or a link's")
    return host


def _can_be_asked(address: str) -> bool:
    """Whether httpx can send to an address: it decodes a host's name in places, and the resolver encodes it."""
    try:
        url = httpx.URL(address)
        host = url.raw_host.decode("ascii")
        return bool(url.host) and (is_host_name(host) or ":" in host)
    except (httpx.InvalidURL, ValueError):  # idna's errors are ValueErrors
        return False


def server_url(text: str) -> str:
    """Type of a flag that takes the address of a server to ask; without a slash at its end.

    Raises:
        ArgumentTypeError: the text is no http(s) URL, or its port is none.
    """
    try:
        parts = urlsplit(text)
        wrong = parts.scheme not in ("http", "https") or parts.port == 0 or not _can_be_asked(text)
    except ValueError:  # a port that is no number, or out of range
        wrong = True
    wrong = wrong or "?" in text or "#" in text  # routes are added at the end
    if wrong or any(sign.isspace() for sign in text):
        raise argparse.ArgumentTypeError(f"{text!r} is no server's address; it must read http://HOST:PORT")
    return text.rstrip("/")


def machine_address(text: str) -> str:
    """Type of a flag that takes an address which a controller is to use; without a slash at its end."""
    address = text.removesuffix("/")
    try:
        host_of(address)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    return address


def warn_of_open_port(host: str, keys: Collection[str]) -> None:
    """Logs that a server takes requests of whoever reaches it, if it does so from other machines."""
    if not keys and not is_loopback(host):
        logger.warning("whoever reaches %s may use this server; --api-key lets only those in who have one", host)


def refusal(token: str | None) -> RequestError:
    """Returns what somebody is told who is not taken for a worker.

    Args:
        token: The secret; it is not told.
    """
    why = "workers need the controller's secret" if token else "without a secret, workers must be on its own machine"
    return RequestError(403, "worker_refused", f"{why}: give --worker-token or ${WORKER_TOKEN_VARIABLE} to both")


class WorkersOnly:
    """ASGI middleware: workers' routes take requests that carry the secret; without one, those of this machine."""

    def __init__(self, app: Any, paths: Collection[str], token: str | None, on_loopback: bool) -> None:
        """
        Args:
            app: The application.
            paths: The workers' routes.
            token: The secret.
            on_loopback: Whether the server listens on loopback addresses only.
        """
        self.app, self.paths, self.token, self.on_loopback = app, frozenset(paths), token, on_loopback

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handles one connection."""
        if scope["type"] == "http" and scope["path"] in self.paths and not self._may_pass(scope):
            error = refusal(self.token)
            await error_response(Failure(error.status, error.kind, str(error)))(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _may_pass(self, scope: Any) -> bool:
        if self.token:
            return is_one_of(bearer_token(scope["headers"]), [self.token.encode()])
        # A page in a local browser comes from here too, but asks for the name that its own server gave this machine.
        named = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        peer, _ = scope["client"] or ("", 0)
        return self.on_loopback and is_loopback(peer) and is_loopback(re.sub(r":[0-9]+$", "", named))


def _token(text: str) -> str:
    """Checks that a secret can travel in a header; says nothing of what it is."""
    if not re.fullmatch("[!-~]+", text):
        rule = "a secret may not be empty, and may hold ASCII letters, digits and signs only, without blanks"
        raise argparse.ArgumentTypeError(f"{rule}; leave the flag out to do without")
    return text


def add_token_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag of the secret that workers and controller share."""
    help = f"secret shared by workers and controller; or ${WORKER_TOKEN_VARIABLE}; needed between machines"
    default = os.environ.get(WORKER_TOKEN_VARIABLE) or None
    parser.add_argument("--worker-token", metavar="SECRET", type=_token, default=default, help=help)
