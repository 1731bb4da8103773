"""Opens pictures from paths, URLs, base64 text and bytes: the one place where LLaVA reads image data.

Everything that comes in is taken for hostile: sizes are checked before pixels are decoded, URLs reach public addresses
only, and errors never repeat what a library said. What a model does with the picture is not known here.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import socket
import struct
import zlib
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image

from llava.serve.addresses import is_global_unicast, is_host_name, is_loopback_ip, parse_ip
from llava.serve.errors import ImageError
from qlip.image_processing import to_rgb

_URL_FORM = "http(s)://HOST[:PORT]/PATH"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

# What Pillow's decoders raise on broken files.
_BROKEN = (
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may cost."""

    max_bytes: int = 20 * 2**20
    """Largest file, in bytes."""
    max_pixels: int = 64_000_000
    """Largest width x height."""
    max_side: int = 16_384
    """Longest side, in pixels."""
    min_side: int = 4
    """Shortest side, in pixels; arrays of three or fewer rows are easily mistaken for colour channels."""
    max_aspect: float = 64.0
    """Longest side over shortest; processors scale by the shortest, so that a thin strip would grow huge."""
    timeout: float = 10.0
    """Seconds a download may take."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")


DEFAULT_LIMITS = ImageLimits()


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
    """Opens a picture.

    Args:
        source: A path, an http(s) URL, a `data:` URL, or the bytes of an image file.
        limits: What the picture may cost.
        allow_paths: Whether to read local files.
        allow_urls: Whether to download.
        allow_loopback: Whether URLs may name this very machine.
        allowed_hosts: The only hosts that URLs may name, in lower case; None for any.

    Returns:
        The first frame, upright, RGB; transparency is laid on white.

    Raises:
        ImageError: if the source is not allowed, cannot be read, is no picture, or is beyond the limits.
    """
    if isinstance(source, bytes):
        return _decode(source, limits)
    if isinstance(source, str):
        scheme = re.match(r"(data|file)(?=:)|[a-z][a-z0-9+.-]*(?=://)", source, re.IGNORECASE)
        if scheme:
            network = Network(allow_urls, allow_loopback, allowed_hosts)
            return _decode(_read_url(source, scheme[0].lower(), limits, network), limits)
    if not allow_paths:
        raise ImageError("local image files are not allowed here; send a data: URL or an http(s) URL")
    return _decode(_read_file(Path(source), limits), limits)


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
    return _decode(_read_base64(text, limits), limits)


def _decode(data: bytes, limits: ImageLimits) -> Image.Image:
    """Image file to upright RGB picture, its declared size checked before any pixel is decoded."""
    if len(data) > limits.max_bytes:
        raise _too_large(limits)
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, limits)
            image.load()
            return to_rgb(image)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"the image has more than {limits.max_pixels:,} pixels") from None
    except _BROKEN as error:
        # Pillow's words may hold memory addresses, so only the kind of the failure is told.
        kinds = ", ".join(FORMATS)
        raise ImageError(
            f"not a readable image ({type(error).__name__}); it is broken, or not one of {kinds}"
        ) from None


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    long, short = max(size), min(size)
    if short < limits.min_side:
        raise ImageError(f"the image is {width}x{height} pixels; each side needs at least {limits.min_side}")
    if long > limits.max_side:
        raise ImageError(f"the image is {width}x{height} pixels; each side may have at most {limits.max_side}")
    if width * height > limits.max_pixels:
        raise ImageError(f"the image is {width}x{height} pixels; at most {limits.max_pixels:,} pixels are allowed")
    if long > limits.max_aspect * short:
        ratio = f"{limits.max_aspect:g}"
        raise ImageError(f"the image is {width}x{height} pixels; one side may be at most {ratio} times the other")


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


def _read_base64(text: str | bytes, limits: ImageLimits) -> bytes:
    if len(text) > limits.max_bytes * 4 // 3 + 4:
        raise _too_large(limits)
    opening = text[:8] if isinstance(text, str) else text[:8].decode("latin-1")
    if opening.lower().startswith(("http://", "https://")):
        raise ImageError("an image URL where base64 text is wanted; send the file's content as base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ImageError("the image's base64 text is broken") from None


def _read_url(url: str, scheme: str, limits: ImageLimits, network: Network) -> bytes:
    if scheme == "data":
        header, comma, body = url.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise ImageError("a data: URL must read data:image/...;base64,...")
        return _read_base64(body, limits)
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
