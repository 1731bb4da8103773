"""Downloads images: from public addresses by default, bounded in time and size, without redirects."""

from __future__ import annotations

import asyncio
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from threading import Thread
from typing import Any

import httpx

from llava.addresses import is_host_name, parse_ip
from llava.image_sources import SourcePolicy
from llava.tls import tls_context
from qlip.images.limits import ImageError, ImageLimits

_URL_FORM = "http(s)://HOST[:PORT]/PATH"


def download(url: str, limits: ImageLimits, policy: SourcePolicy) -> bytes:
    """Downloads a file from the address that was checked: resolves names once, follows no redirects.

    Args:
        url: http or https.
        limits: On its bytes and seconds.
        policy: Which hosts it may name.

    Raises:
        ImageError: if the host is not allowed or not public, or the download fails.
    """
    try:
        parsed, host, port = _split_url(url)
        # Compares the host that is connected to, so that two parsers cannot disagree about the URL.
        if policy.hosts is not None and host.lower() not in policy.hosts:
            raise ImageError(
                f"images from the host {host!r} are not allowed here; send the picture itself as a data: URL, or have"
                " the server started with this host among its --allowed-media-domains"
            )
        deadline = time.monotonic() + limits.timeout
        address = _find_address(host, port, limits.timeout, policy)
        # In a separate event loop: only there can the whole download be bounded, slow headers included.
        fetching = _fetch(parsed, parsed.copy_with(host=address), host, limits, deadline)
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, fetching).result()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ImageError(f"cannot download the image ({type(error).__name__})") from None


def _split_url(url: str) -> tuple[httpx.URL, str, int]:
    """Parses a URL into its parts, its host in ASCII and its port; refuses what cannot be looked up.

    Raises:
        ImageError: it is not a URL, or it holds a password.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:  # a bad host or port, or a lone surrogate
        why = f"its URL cannot be read ({type(error).__name__}); it must read {_URL_FORM}"
        raise ImageError(f"cannot download the image: {why}") from None
    if parsed.userinfo or not parsed.raw_host:
        raise ImageError(f"an image URL needs a host and may not hold a password; it must read {_URL_FORM}")
    host = parsed.raw_host.decode("ascii")  # never `parsed.host`, which decodes international names and may raise
    try:
        valid = is_host_name(host) or (":" in host and bool(parse_ip(host)))
    except ValueError:
        valid = False
    if not valid:
        raise ImageError(f"the image URL's host {host[:100]!r} is not a host name; it must read {_URL_FORM}")
    port = {"http": 80, "https": 443}[parsed.scheme] if parsed.port is None else parsed.port
    if not 0 < port < 2**16:
        raise ImageError(f"the image URL's port is {port}; it must be 1 to 65535")
    return parsed, host, port


async def _fetch(url: httpx.URL, pinned: httpx.URL, host: str, limits: ImageLimits, deadline: float) -> bytes:
    """Fetches the body of a reply within the time limit.

    Args:
        url: As requested.
        pinned: The same with an address for its host.
        host: For the certificate.
        limits: On bytes and seconds.
        deadline: When the time is up, by `time.monotonic`.
    """
    # Asks for plain bytes, since a compressed reply could unfold without bound, and uses no proxy, which would resolve
    # the name again.
    headers = {"Host": url.netloc.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity"}

    async def fetch() -> bytes:
        async with (
            httpx.AsyncClient(
                verify=tls_context(), timeout=limits.timeout, follow_redirects=False, trust_env=False
            ) as client,
            client.stream("GET", pinned, headers=headers, extensions={"sni_hostname": host}) as reply,
        ):
            if reply.status_code != 200:
                raise ImageError(f"cannot download the image: the server answered {reply.status_code}")
            data = bytearray()
            async for chunk in reply.aiter_raw():
                data += chunk
                if len(data) > limits.max_bytes:
                    raise limits.too_large()
            return bytes(data)

    try:
        return await asyncio.wait_for(fetch(), max(0.0, deadline - time.monotonic()))
    except asyncio.TimeoutError:
        raise ImageError(f"the download took longer than {limits.timeout:g} seconds") from None


def _find_address(host: str, port: int, timeout: float, policy: SourcePolicy) -> str:
    """Resolves a host once; all its addresses must be allowed, or an attacker could choose the one that is used."""
    try:
        found = _look_up(host, port).result(timeout)
        addresses = [str(entry[4][0]) for entry in found]
        refused = [address for address in addresses if not policy.allows(address)]
    except FutureTimeout:
        raise ImageError(f"finding the host {host!r} took longer than {timeout:g} seconds") from None
    except (OSError, ValueError):
        addresses, refused = [], []
    if not addresses:
        raise ImageError(f"cannot find the host {host!r}")
    if refused:
        raise ImageError(f"the host {host!r} is not a public address")
    return addresses[0]


def _look_up(host: str, port: int) -> Future[list[Any]]:
    """Begins to resolve a host, in a thread that nobody waits for: the system's resolver can't be stopped."""
    future: Future[list[Any]] = Future()

    def run() -> None:
        try:
            future.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:
            future.set_exception(error)

    Thread(target=run, name="image-host", daemon=True).start()
    return future
