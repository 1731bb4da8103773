"""The API accepts uncommon images and refuses malicious ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import BytesIO

import httpx
import pytest
from PIL import Image

from llava.serve.engine import ChatEngine
from llava.serve.http.limits import RequestLimits
from tests.llava.serve.openai.replies import error_of
from tests.llava.serve.openai.serving import (
    CHAT,
    QUESTION,
    api,
    body,
    data_url,
    picture,
    user,
)
from tests.llava.test_images import EXIF_ORIENTATION, encode, png_header

# Pictures


def gif() -> bytes:
    frames = [Image.new("P", (32, 32), colour) for colour in range(3)]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:])


def rotated() -> bytes:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    return encode(picture(), "JPEG", quality=95, exif=exif)


GOOD = {
    "animated GIF": gif,
    "16 bits": lambda: encode(Image.new("I;16", (40, 40), 40_000)),
    "CMYK": lambda: encode(Image.new("CMYK", (40, 40), (0, 200, 100, 0)), "JPEG"),
    "EXIF-rotated": rotated,
    "1-bit": lambda: encode(Image.new("1", (40, 40))),
    "transparent": lambda: encode(Image.new("RGBA", (40, 40), (1, 2, 3, 4))),
    "64 to 1": lambda: encode(Image.new("L", (640, 10))),
}


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD)
def test_an_uncommon_picture_is_seen(limited_client: httpx.Client, data: Callable[[], bytes]) -> None:
    reply = limited_client.post(CHAT, json=body(user(QUESTION, data_url(data())), max_tokens=2))
    assert reply.status_code == 200, reply.text
    assert 1 <= reply.json()["usage"]["prompt_tokens_details"]["image_tokens"] <= 128


def test_a_rotated_picture_is_seen_upright(limited_client: httpx.Client) -> None:
    upright = encode(Image.open(BytesIO(rotated())).transpose(Image.Transpose.ROTATE_270), "PNG")
    found, expected = (
        limited_client.post(CHAT, json=body(user(QUESTION, data_url(d)))).json() for d in (rotated(), upright)
    )
    assert found["choices"][0]["message"] == expected["choices"][0]["message"]


BAD = {
    "1x1": (lambda: data_url(encode(Image.new("RGB", (1, 1)))), "1x1 pixels; each side needs at least 4"),
    "20000x10": (lambda: data_url(encode(Image.new("1", (20_000, 10)))), "20000x10 pixels; each side may have at most"),
    "65 to 1": (lambda: data_url(encode(Image.new("L", (650, 10)))), "650x10 pixels; one side may be at most 64 times"),
    "truncated": (lambda: data_url(encode(picture())[:900]), "not a readable image"),
    "too many pixels": (lambda: data_url(png_header(1500, 1000)), "1500x1000 pixels; at most 1,000,000 pixels"),
    "bomb": (lambda: data_url(png_header(16_000, 16_000)), "more than 1,000,000 pixels"),
    "file too large": (lambda: data_url(b"P6" + bytes(200_001)), "larger than 200,000 bytes"),
    "broken base64": (lambda: "data:image/png;base64,???", "base64 text is broken"),
    "not base64": (lambda: "data:image/png,abc", "a data: URL must read data:image/...;base64,..."),
    "no image": (lambda: data_url(b"hello"), "not a readable image"),
    "empty": (lambda: data_url(b""), "not a readable image"),
    "SVG": (lambda: data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), "not a readable image"),
    "file:": (lambda: "file:///etc/passwd", "file: URLs are not allowed; use a data: URL (data:image/png;base64,...)"),
    "path": (lambda: "/etc/passwd", "local image files are not allowed here"),
    "no URL": (lambda: "", "local image files are not allowed here"),
    "ftp:": (lambda: "ftp://example.org/a.png", "ftp: URLs are not allowed"),
    "http:": (
        lambda: "http://example.org/a.png",
        "image URLs are not allowed here; send the picture itself as a data: URL (data:image/png;base64,...), or have"
        " the server started with --allowed-media-domains HOST",
    ),
    "metadata service": (lambda: "http://169.254.169.254/latest", "image URLs are not allowed here"),
}


@pytest.mark.parametrize(("url", "words"), BAD.values(), ids=BAD)
def test_a_hostile_picture_is_refused_in_our_own_words(
    limited_client: httpx.Client, limited_engine: ChatEngine, url: Callable[[], str], words: str
) -> None:
    response = limited_client.post(CHAT, json=body(user(QUESTION, data_url(), url())))
    error = error_of(response, 400, "invalid_image")
    assert words in error["message"]
    assert error["param"] == "messages[0].content[1].image_url"
    assert not re.search(r"\b0x[0-9a-f]|Traceback|PIL|BytesIO|/usr|passwd", response.text)
    assert limited_engine.waiting == limited_engine.running == 0


PRIVATE = [
    "http://10.0.0.1/a",
    "http://169.254.169.254/a",
    "http://[::1]/a",
    "http://0.0.0.0/a",
    "http://127.0.0.1:1/a",
]


@pytest.mark.parametrize("url", PRIVATE)
def test_an_allowed_host_must_still_be_public(url: str) -> None:
    host = httpx.URL(url).host
    with api(limits=RequestLimits(media_hosts=frozenset({host, f"[{host}]"}))) as (_, client):
        error = error_of(client.post(CHAT, json=body(user(QUESTION, url))), 400, "invalid_image")
    assert "is not a public address" in error["message"]


def test_another_host_than_the_allowed_is_not_asked() -> None:
    with api(limits=RequestLimits(media_hosts=frozenset({"example.org"}))) as (_, client):
        for url in ("http://example.com/a", "http://example.org@10.0.0.1/a", "http://10.0.0.1#example.org/a"):
            error_of(client.post(CHAT, json=body(user(QUESTION, url))), 400, "invalid_image")
