"""Pictures of a conversation fit into one request to a worker, without loss where they can."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from llava.images import DEFAULT_LIMITS
from llava.serve.http.limits import RequestLimits
from llava.serve.web import encoded_pictures
from llava.serve.web.encoded_pictures import MAX_ENCODED_PIXELS, encode_pictures


def noise(width: int, height: int) -> Image.Image:
    """What PNG cannot compress."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def decode(text: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(text)))


def test_a_picture_arrives_as_it_is() -> None:
    picture = noise(60, 40)
    (text,) = encode_pictures([picture])
    assert decode(text).format == "PNG"
    assert decode(text).tobytes() == picture.tobytes()


def test_more_pixels_than_a_tower_takes_are_not_sent() -> None:
    (text,) = encode_pictures([Image.new("RGB", (4000, 2000))])
    width, height = decode(text).size
    assert 0.99 * MAX_ENCODED_PIXELS < width * height <= MAX_ENCODED_PIXELS
    assert width / height == pytest.approx(2, abs=0.01)


def test_eight_pictures_of_noise_fit_into_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a hundredth of the pixels and of the limit, since noise takes seconds to encode."""
    monkeypatch.setattr(encoded_pictures, "MAX_ENCODED_PIXELS", MAX_ENCODED_PIXELS // 100)
    monkeypatch.setattr(encoded_pictures, "MAX_ENCODED_BYTES", encoded_pictures.MAX_ENCODED_BYTES // 100)
    texts = encode_pictures([noise(400, 200)] * 8)
    assert {decode(text).format for text in texts} == {"JPEG"}
    assert sum(map(len, texts)) < RequestLimits.max_body // 100
    assert max(map(len, texts)) < DEFAULT_LIMITS.max_bytes // 100
