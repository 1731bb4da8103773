"""Opens images from paths, URLs, base64 text and bytes. What decodes them is `llava.images`.

Everything that comes in is taken for hostile: files are bounded, URLs reach public addresses only, and errors never
repeat what a library said.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import socket
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
from PIL import Image

from llava.images import DEFAULT_LIMITS as DEFAULT_LIMITS
from llava.images import FORMATS as FORMATS
from llava.images import ImageLimits as ImageLimits
from llava.images import decode_image
from llava.serve.addresses import is_global_unicast, is_host_name, is_loopback_ip, parse_ip
from llava.serve.errors import ImageError

_URL_FORM = "http(s)://HOST[:PORT]/PATH"


@dataclass(frozen=True)
class Network:
    """Where a download may go."""

    allow_urls: bool
    allow_loopback: bool
    allowed_hosts: Collection[str] | None


def load_image(
    source: str | Path | bytes,
    limits: ImageLimits = DEFAULT_LIMITS,
    *,
    allow_paths: bool = True,
    allow_urls: bool = True,
    allow_loopback: bool = False,
    allowed_hosts: Collection[str] | None = None,
) -> Image.Image:
    """Opens an image in this process. Servers, which open strangers' files, use `decoder_pool` instead.

    Args:
        source: See `read_image`, as all other arguments.

    Returns:
        The first frame, upright, RGB; transparency is laid on white.

    Raises:
        ImageError: if the source is not allowed, cannot be read, is no image, or is beyond the limits.
    """
    data = read_image(
        source,
        limits,
        allow_paths=allow_paths,
        allow_urls=allow_urls,
        allow_loopback=allow_loopback,
        allowed_hosts=allowed_hosts,
    )
    return decode_image(data, limits)


def read_image(
    source: str | Path | bytes,
    limits: ImageLimits = DEFAULT_LIMITS,
    *,
    allow_paths: bool = True,
    allow_urls: bool = True,
    allow_loopback: bool = False,
    allowed_hosts: Collection[str] | None = None,
) -> bytes:
    """Reads an image file, without decoding it.

    Args:
        source: A path, an http(s) URL, a `data:` URL, or the bytes of an image file.
        limits: What the image may cost.
        allow_paths: Whether to read local files.
        allow_urls: Whether to download.
        allow_loopback: Whether URLs may name this very machine.
        allowed_hosts: The only hosts that URLs may name, in lower case; None for any.

    Raises:
        ImageError: if the source is not allowed, cannot be read, or is larger than allowed.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, str):
        scheme = re.match(r"(data|file)(?=:)|[a-z][a-z0-9+.-]*(?=://)", source, re.IGNORECASE)
        if scheme:
            network = Network(allow_urls, allow_loopback, allowed_hosts)
            return _read_url(source, scheme[0].lower(), limits, network)
    if not allow_paths:
        raise ImageError(
            "local image files are not allowed here, and this text is no URL; send a data: URL (base64 text needs"
            " data:image/png;base64, before it) or an http(s) URL"
        )
    return _read_file(Path(source), limits)


def load_images(sources: Iterable[str | Path]) -> list[Image.Image]:
    """Opens pictures as `load_image`; an error names the one that it is about."""
    images = []
    for source in sources:
        name = str(source) if len(str(source)) <= 200 else f"{str(source)[:60]}..."  # a data: URL holds the whole file
        try:
            images.append(load_image(source))
        except ImageError as error:
            raise ImageError(str(error) if name and name in str(error) else f"{name or 'no name'}: {error}") from None
    return images


def load_image_from_base64(text: str | bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Opens the base64 text of an image file; returns and raises as `load_image`."""
    return decode_image(read_base64(text, limits), limits)


def read_base64(text: str | bytes, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """Decodes the base64 text of a file. Line breaks and blanks are skipped, as MIME's encoders write them.

    Raises:
        ImageError: the text is no base64, or longer than allowed.
    """
    if len(text) > 2 * limits.max_bytes + 1000:
        raise _too_large(limits)
    if isinstance(text, str):
        text = text.encode("utf-8", "replace")
    if text[:8].lower().startswith((b"http://", b"https://")):
        raise ImageError("an image URL where base64 text is wanted; send the file's content as base64")
    if text[:5].lower() == b"data:":
        text = text.partition(b",")[2]
    try:
        data = base64.b64decode(b"".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError("the image's base64 text is broken") from None
    limits.check_bytes(len(data))
    return data


def _too_large(limits: ImageLimits) -> ImageError:
    return ImageError(f"the image file is larger than {limits.max_bytes:,} bytes")


def _read_file(path: Path, limits: ImageLimits) -> bytes:
    try:
        if not path.exists():
            raise ImageError(f"no such image file: {path}")
        if not path.is_file():
            raise ImageError(f"not a file: {path}")
        with path.open("rb") as file:
            return file.read(limits.max_bytes + 1)
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}") from None


def _read_url(url: str, scheme: str, limits: ImageLimits, network: Network) -> bytes:
    if scheme == "data":
        header, comma, body = url.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise ImageError("a data: URL must read data:image/...;base64,...")
        return read_base64(body, limits)
    if scheme not in ("http", "https"):
        raise ImageError(f"{scheme}: URLs are not allowed; use http:, https: or data:")
    if not network.allow_urls:
        raise ImageError(
            "image URLs are not allowed here; send the picture itself as a data: URL (data:image/png;base64,...), or"
            " have the server started with --allowed-media-domains HOST"
        )
    try:
        return _download(url, limits, network)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ImageError(f"cannot download the image ({type(error).__name__})") from None


def _download(url: str, limits: ImageLimits, network: Network) -> bytes:
    """Fetches a URL from the very address that was checked: names are resolved once, redirects are not followed."""
    parsed, host, port = _split_url(url)
    # The very host that is connected to is compared, so that no two parsers can differ over the URL.
    if network.allowed_hosts is not None and host.lower() not in network.allowed_hosts:
        raise ImageError(
            f"images from the host {host!r} are not allowed here; send the picture itself as a data: URL, or have the"
            " server started with this host among its --allowed-media-domains"
        )
    address = _public_address(host, port, network.allow_loopback)
    # In a loop of its own: only there can the whole be bounded, a head that drips in included.
    fetching = _fetch(parsed, parsed.copy_with(host=address), host, limits)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, fetching).result()


def _split_url(url: str) -> tuple[httpx.URL, str, int]:
    """Parses a URL into itself, its host in ASCII and its port; whatever cannot be looked up is refused here.

    Raises:
        ImageError: it is no URL, or it holds a password.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:  # a host, a port, half a character
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
        raise ImageError(f"the image URL's host {host[:100]!r} is no host name; it must read {_URL_FORM}")
    port = {"http": 80, "https": 443}[parsed.scheme] if parsed.port is None else parsed.port
    if not 0 < port < 2**16:
        raise ImageError(f"the image URL's port is {port}; it must be 1 to 65535")
    return parsed, host, port


async def _fetch(url: httpx.URL, pinned: httpx.URL, host: str, limits: ImageLimits) -> bytes:
    """The body of a reply, all within the time limit.

    Args:
        url: As it was asked for.
        pinned: The same with an address for its host.
        host: For the certificate.
        limits: Bytes and seconds.
    """
    # The plain bytes are asked for, since a compressed reply could unfold without bound; proxies would resolve anew.
    headers = {"Host": url.netloc.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity"}

    async def fetch() -> bytes:
        async with (
            httpx.AsyncClient(timeout=limits.timeout, follow_redirects=False, trust_env=False) as client,
            client.stream("GET", pinned, headers=headers, extensions={"sni_hostname": host}) as reply,
        ):
            if reply.status_code != 200:
                raise ImageError(f"cannot download the image: the server answered {reply.status_code}")
            data = bytearray()
            async for chunk in reply.aiter_raw():
                data += chunk
                if len(data) > limits.max_bytes:
                    raise _too_large(limits)
            return bytes(data)

    try:
        return await asyncio.wait_for(fetch(), limits.timeout)
    except asyncio.TimeoutError:
        raise ImageError(f"the download took longer than {limits.timeout:g} seconds") from None


def _public_address(host: str, port: int, allow_loopback: bool) -> str:
    """Resolves a host once; every address it has must be public, or an attacker could pick the one that is used."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        refused = [address for address in addresses if not _is_allowed(address, allow_loopback)]
    except (OSError, ValueError):
        addresses, refused = [], []
    if not addresses:
        raise ImageError(f"cannot find the host {host!r}")
    if refused:
        raise ImageError(f"the host {host!r} is not a public address")
    return addresses[0]


def _is_allowed(address: str, allow_loopback: bool) -> bool:
    return is_global_unicast(address) or (allow_loopback and is_loopback_ip(address))
