"""Opens images from paths, URLs, base64 text, bytes and open files; `qlip.images.pictures` decodes them.

Pillow and numpy only, since processes without torch use it; `llava.downloads` is loaded for an http(s) URL.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from io import TextIOBase
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from PIL import Image

from llava.image_sources import SourcePolicy
from qlip.command import suggest_path
from qlip.images.limits import DEFAULT_LIMITS, TIFF_SIGNATURES, ImageError, ImageLimits, check_header
from qlip.images.pictures import FORMATS, convert_errors, decode_image
from qlip.images.rgb import read_orientation, to_rgb

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

ESCAPES = {b"%2B": b"+", b"%2b": b"+", b"%2F": b"/", b"%2f": b"/", b"%3D": b"=", b"%3d": b"=", b"%0A": b"", b"%0D": b""}
"""How a URL may write the signs of base64."""

Fit = Callable[[int, int], tuple[int, int]]
"""(width, height) of an image -> the (width, height) that it will be resized to, bicubically."""


class ImageOpener(ABC):
    """An image of a request that is opened only when it is needed, since large images need memory."""

    fit: Fit | None = None
    """The size that the image will be resized to, if known: it may be resized while it is opened."""

    @abstractmethod
    def __call__(self) -> Image.Image:
        """Opens the image."""

    @abstractmethod
    def cancel(self) -> None:
        """Makes a call in another thread, and all later ones, raise."""


def load_image(
    source: str | os.PathLike[str] | bytes | BinaryIO | Image.Image,
    limits: ImageLimits = DEFAULT_LIMITS,
    **allowed: Any,
) -> Image.Image:
    """Opens an image in this process. Servers, which open untrusted files, use `llava.serve.decoding` instead.

    Args:
        source: What `read_image` takes, or a Pillow image.
        limits: On the image; those of its file do not hold for a Pillow image.
        **allowed: See `read_image`.

    Returns:
        The first frame, upright, RGB; transparency is laid on white.

    Raises:
        ImageError: if the source is not allowed, cannot be read, is not an image, or is beyond the limits.
        TypeError: if it is none of these.
    """
    if isinstance(source, Image.Image):
        limits.check_size(*source.size)
        return to_rgb(source)
    return decode_image(read_image(source, limits, **allowed), limits)


def read_image(
    source: str | os.PathLike[str] | bytes | BinaryIO,
    limits: ImageLimits = DEFAULT_LIMITS,
    *,
    allow_paths: bool = True,
    allow_urls: bool = True,
    allow_loopback: bool = False,
    allow_private: bool = False,
    allowed_hosts: Collection[str] | None = None,
) -> bytes:
    """Reads an image file, without decoding it.

    Args:
        source: A path, an http(s) URL, a `data:` URL, the bytes of an image file, or a file that is open for bytes.
        limits: On the image.
        allow_paths: Whether to read local files.
        allow_urls: Whether to download.
        allow_loopback: Whether URLs may name this machine.
        allow_private: Whether URLs may name this machine and others in its network: for URLs that the user of this
            process gives, never for those of a client.
        allowed_hosts: The only hosts that URLs may name, in lower case; None for any.

    Raises:
        ImageError: if the source is not allowed, cannot be read, or is larger than allowed.
        TypeError: if it is none of these, or a file that is open as text.
    """
    policy = SourcePolicy(allow_paths, allow_urls, allow_loopback, allow_private, allowed_hosts)
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if hasattr(source, "read"):
        if isinstance(source, TextIOBase):
            raise TypeError("the image is a file that is open as text; open it for bytes, mode 'rb'")
        return limits.read(source)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"the image is a {type(source).__name__}; it must be a path, a URL, the bytes of an image file, an open"
            " file or a Pillow image"
        )
    url = source.strip() if isinstance(source, str) else ""  # copied with a blank or a line break
    if scheme := re.match(r"(data|file)(?=:)|[a-z][a-z0-9+.-]*(?=://)", url, re.I):
        return _read_url(url, scheme[0].lower(), limits, policy)
    if not policy.paths:
        raise ImageError(
            f"local image files are not allowed here, and this text is not a URL; use {policy.describe()}; base64 text"
            " needs data:image/png;base64, before it"
        )
    if not str(source).strip():
        raise ImageError("the name of an image file is empty")
    return _use_file(Path(source), limits.read)


def read_size(path: str | Path, limits: ImageLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """Reads the (width, height) of the image that `load_image` opens, upright, from the file's header.

    Pixels are not decoded, so that damage among them is not found; TIFF files are, because Pillow turns them upright as
    it decodes them.

    Raises:
        ImageError: the file cannot be read, is not an image, or is beyond the limits.
    """
    return _use_file(Path(path), lambda file: _find_size(file, limits))


def load_images(sources: Iterable[str | Path], **allowed: Any) -> list[Image.Image]:
    """Opens images like `load_image`; an error names its image."""
    images = []
    for source in sources:
        name = str(source) if len(str(source)) <= 200 else f"{str(source)[:60]}..."  # a data: URL holds the whole file
        try:
            images.append(load_image(source, **allowed))
        except ImageError as error:
            known = not name.strip() or name in str(error)
            raise ImageError(str(error) if known else f"{name}: {error}") from None
    return images


def load_readable_images(sources: Sequence[str], **allowed: Any) -> tuple[list[Image.Image], list[str]]:
    """Opens images like `load_images`; logs an error for each that can't be read, and leaves it out.

    Returns:
        The images, and their sources.

    Raises:
        ImageError: none can be read.
    """
    images, read = [], []
    for source in sources:
        try:
            images += load_images([source], **allowed)
            read.append(source)
        except ImageError as error:
            if len(sources) == 1:
                raise
            logger.error("left out: %s", error)
    if not images:
        raise ImageError(f"none of the {len(sources)} images can be read")
    return images, read


def load_image_from_base64(text: str | bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Opens the base64 text of an image file; raises like `load_image`."""
    return decode_image(read_base64(text, limits), limits)


def read_base64(text: str | bytes, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """Decodes the base64 text of a file. Skips the line breaks and blanks that MIME encoders write.

    Raises:
        ImageError: the text is not base64, or longer than allowed.
    """
    if len(text) > 2 * limits.max_bytes + 1000:
        raise limits.too_large()
    if isinstance(text, str):
        text = text.encode("utf-8", "replace")
    if text[:8].lower().startswith((b"http://", b"https://")):
        raise ImageError("an image URL where base64 text is wanted; send the file's content as base64")
    if text[:5].lower() == b"data:":
        text = text.partition(b",")[2]
    if b"%" in text:
        for escape, sign in ESCAPES.items():  # each in one pass: this runs before the limits of the decoders
            text = text.replace(escape, sign)
    try:
        data = base64.b64decode(text.translate(None, b" \t\r\n\v\f"), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError("the image's base64 text is broken") from None
    limits.check_bytes(len(data))
    return data


def _use_file(path: Path, use: Callable[[BinaryIO], Result]) -> Result:
    """Opens a file and calls `use` with it.

    Raises:
        ImageError: it cannot be opened or read.
    """
    name, advice = str(path), ""
    if len(name) > 100 and re.fullmatch(r"[A-Za-z0-9+/=\s]+", name):
        name, advice = f"{name[:60]}...", "; base64 text needs data:image/png;base64, before it"
    elif name != name.strip():
        name = repr(name)  # shows the blanks at its ends
    try:
        if not path.exists():
            raise ImageError(f"no such image file: {name}{advice}")
        if not path.is_file():
            raise ImageError(f"{name} is {'a folder' if path.is_dir() else 'no file'}, not an image file")
        with path.open("rb") as file:
            return use(file)
    except OSError as error:
        raise ImageError(f"cannot read {name}: {error.strerror}{advice}") from None


def _find_size(file: BinaryIO, limits: ImageLimits) -> tuple[int, int]:
    """Finds the upright (width, height) of an image; raises as `decode_image` does."""
    start = file.read(4)
    file.seek(0)
    if start in TIFF_SIGNATURES:
        return decode_image(limits.read(file), limits).size
    limits.check_bytes(os.fstat(file.fileno()).st_size)
    with convert_errors(limits), Image.open(check_header(file), formats=FORMATS) as image:
        limits.check_size(*image.size)
        width, height = image.size
        return (height, width) if 5 <= read_orientation(image) <= 8 else (width, height)


def _read_url(url: str, scheme: str, limits: ImageLimits, policy: SourcePolicy) -> bytes:
    if scheme == "file" and policy.paths:
        raise ImageError(f"file: URLs are not allowed; {suggest_path(url)}")
    if scheme not in ("data", "http", "https"):
        raise ImageError(f"{scheme}: URLs are not allowed; use {policy.describe()}")
    if scheme == "data":
        header, comma, body = url.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise ImageError("a data: URL must read data:image/...;base64,...")
        return read_base64(body, limits)
    if not policy.urls:
        raise ImageError(
            "image URLs are not allowed here; send the picture itself as a data: URL (data:image/png;base64,...), or"
            " have the server started with --allowed-media-domains HOST"
        )
    from llava.downloads import download  # here, since it loads httpx and asyncio, which local files do not need

    return download(url, limits, policy)
