"""Finding and reading image files."""

from __future__ import annotations

import logging

import pytest
from PIL import Image, features

from qlip.pictures import find_pictures, open_picture, read_picture


def test_images_are_found_at_any_depth_and_other_files_are_not(tmp_path):
    for name in ("train/b/0.png", "train/a/1.JPG", "2.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "train" / "notes.txt").write_text("no image")
    assert [path.stem for path in find_pictures(tmp_path)] == ["2", "1", "0"]


@pytest.mark.parametrize("kind", ["absent", "empty"])
def test_a_folder_without_images_is_refused(tmp_path, kind):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"there (is no folder|are no images).*{kind}"):
        find_pictures(tmp_path / kind)


def test_a_file_that_cannot_be_read_is_refused_or_logged(tmp_path, caplog):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png can't be read as an image: cannot identify"):
        open_picture(tmp_path / "text.png")
    with caplog.at_level(logging.WARNING):
        assert read_picture(tmp_path / "text.png") is None
    assert "text.png can't be read" in caplog.text


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
@pytest.mark.parametrize("lost", [b"iloc", b"ispe"])
def test_a_damaged_avif_is_skipped_as_others_are(tmp_path, lost):
    """Its decoder raises RuntimeError."""
    file = tmp_path / "a.avif"
    Image.new("RGB", (40, 30), "red").save(file)
    file.write_bytes(file.read_bytes().replace(lost, b"free", 1))
    assert read_picture(file) is None


def test_an_image_is_upright_rgb(tmp_path):
    image = Image.new("L", (4, 2), 9)
    image.getexif()[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=image.getexif())
    assert (read := read_picture(tmp_path / "turned.png")) is not None
    assert (read.mode, read.size, read.getpixel((0, 0))) == ("RGB", (2, 4), (9, 9, 9))
