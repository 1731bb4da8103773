"""A file is the same picture whether a processor gets its path, its base64 text, its URL or the opened image."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from urllib.request import Request

import numpy as np
import pytest
from PIL import Image

from qlip import QLIPImageProcessor
from qlip.images import sources
from qlip.images.sources import open_sources
from tests.qlip.integrations.models import attached, picture


def grey_16_bits() -> Image.Image:
    return Image.fromarray((np.linspace(0, 1, 48 * 64) * 65535).astype(np.uint16).reshape(48, 64))


def transparent() -> Image.Image:
    image = picture(48, 64).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def turned() -> tuple[Image.Image, Image.Exif]:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    return picture(48, 64), exif


@pytest.fixture(params=["grey", "transparent", "turned"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    if request.param == "turned":
        image, exif = turned()
        image.save(path, exif=exif)
    else:
        {"grey": grey_16_bits, "transparent": transparent}[request.param]().save(path)
    return path


def test_every_source_is_the_picture_that_pillow_opens(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = QLIPImageProcessor()
    expected = processor(Image.open(file), return_tensors="np")["pixel_values"]
    data, url = file.read_bytes(), "https://example.org/image.png"
    text = base64.b64encode(data).decode()

    def open_url(request: Request, timeout: float) -> BytesIO:
        assert request.full_url == url and timeout > 0
        return BytesIO(data)

    monkeypatch.setattr(sources, "urlopen", open_url)
    for source in (str(file), file, url, text, f"data:image/png;base64,{text}"):
        assert np.array_equal(processor(source, return_tensors="np")["pixel_values"], expected)


def test_an_attached_processor_opens_paths_as_pillow_does(file: Path) -> None:
    processor = attached("llava")[1]
    expected = processor(images=Image.open(file), text="<image> What?", return_tensors="np")
    given = processor(images=str(file), text="<image> What?", return_tensors="np")
    assert np.array_equal(given["pixel_values"], expected["pixel_values"])
    assert np.array_equal(given["input_ids"], expected["input_ids"])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("no-such-file.png", "'no-such-file.png' is no image file, http(s) URL or base64 text of an image"),
        ("", "'' is no image file"),
        ("x" * 500 + "!", "xxx...' is no image file"),
        (base64.b64encode(b"text").decode(), "dGV4dA==: not a readable image"),
    ],
)
def test_what_is_no_image_is_named(source: str, words: str) -> None:
    with pytest.raises(ValueError) as error:
        QLIPImageProcessor()(source)
    assert words in str(error.value)


def test_lists_keep_their_form_and_other_images_pass() -> None:
    image, array = picture(8, 8), np.zeros((8, 8, 3), np.uint8)
    assert open_sources([[image], array]) == [[image], array]
