"""Finding and reading image files."""

from __future__ import annotations

import logging
import os
import tracemalloc

import pytest
from PIL import Image, ImageFile, features

from qlip.images.limits import ImageError, check_scans, count_scans
from qlip.images.pictures import check_drawing_name, find_pictures, open_picture, read_picture, without_pixel_limit
from scripts.soak import hostile


def test_images_are_found_at_any_depth_and_other_files_are_not(tmp_path):
    for name in ("train/b/0.png", "train/a/1.JPG", "2.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "train" / "notes.txt").write_text("no image")
    assert [path.stem for path in find_pictures(tmp_path)] == ["2", "1", "0"]


def test_photographs_in_formats_that_are_not_read_are_told(tmp_path, caplog):
    for name in ("a.png", "b.HEIC", "raw/c.dng", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in find_pictures(tmp_path)] == ["a.png"]
    (told,) = [record.getMessage() for record in caplog.records]
    assert told in [f"{tmp_path}: not read: {name} and 1 more; convert to JPEG" for name in ("b.HEIC", "c.dng")]
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"there are no images in .*: not read: .* and 1 more; convert to JPEG"):
        find_pictures(tmp_path)


def test_linked_folders_are_entered_once_even_if_they_lead_back(tmp_path):
    """`all/linked` is a data set elsewhere, `all/again` the folder itself."""
    (tmp_path / "all").mkdir()
    (tmp_path / "set").mkdir()
    for file in (tmp_path / "all" / "0.png", tmp_path / "set" / "1.png"):
        file.touch()
    (tmp_path / "all" / "linked").symlink_to(tmp_path / "set", target_is_directory=True)
    (tmp_path / "all" / "again").symlink_to(tmp_path / "all", target_is_directory=True)
    found = [path.relative_to(tmp_path) for path in find_pictures(tmp_path / "all")]
    assert [str(path) for path in found] == ["all/0.png", "all/linked/1.png"]


@pytest.mark.parametrize("kind", ["absent", "empty"])
def test_a_folder_without_images_is_refused(tmp_path, kind):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"there (is no folder|are no images).*{kind}"):
        find_pictures(tmp_path / kind)


def test_a_file_that_cannot_be_read_is_refused_or_logged(tmp_path, caplog):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png: not a readable image"):
        open_picture(tmp_path / "text.png")
    with caplog.at_level(logging.WARNING):
        assert read_picture(tmp_path / "text.png") is None
    assert "text.png: not a readable image" in caplog.text


HOSTILE = {
    "scans.jpg": (lambda: hostile.jpeg_of_scans(64, 1000), "1,006 scans; at most 500"),
    "tags.tif": (lambda: hostile.tiff_with_tags(tags=100, size=2**20), "tags hold more bytes than the file"),
    "chunks.png": (lambda: hostile.png_of_chunks(100_001), "more than 100,000 chunks"),
    "comment.gif": (lambda: hostile.gif_with_comment(2**21), "more than 1,048,576 bytes of comments"),
    "junk.gif": (lambda: hostile.gif_with_comment(2**21, before=b"\0"), "more than 1,048,576 bytes of comments"),
    "deep.ppm": (lambda: b"P6 5000 4000 65535\n", "at most 16,777,216 bytes and pixels"),
    "line.png": (lambda: hostile.saved(Image.new("1", (10**6, 1))), "may have at most 32768"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_small_file_that_costs_much_is_refused_before_its_pixels(tmp_path, monkeypatch, name):
    make, words = HOSTILE[name]
    (tmp_path / name).write_bytes(make())
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"{name}: .*{words}"):
            open_picture(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 2**20 + 5 * (tmp_path / name).stat().st_size
    finally:
        tracemalloc.stop()


def test_a_large_jpeg_may_have_fewer_scans():
    data = hostile.jpeg_of_scans(64, 300)
    check_scans(data, pixels=64_000_000)
    with pytest.raises(ImageError, match="306 scans; at most 200 are allowed at its size"):
        check_scans(data, pixels=160_000_000)


def test_what_follows_a_jpeg_is_no_scan_of_it(tmp_path):
    """Phones put a video there, whose bytes may look like scans; a thumbnail before has its own end."""
    thumbnail = hostile.saved(Image.new("RGB", (16, 16)), "JPEG")
    exif = b"\xff\xe1" + (2 + len(thumbnail)).to_bytes(2, "big") + thumbnail
    picture = hostile.saved(Image.new("RGB", (90, 60), "teal"), "JPEG")
    (tmp_path / "moving.jpg").write_bytes(picture[:2] + exif + picture[2:] + 600 * b"\xff\xda\0\x08")
    assert open_picture(tmp_path / "moving.jpg").size == (90, 60)
    assert count_scans(picture[:2] + exif + picture[2:]) == count_scans(picture) == 1
    progressive = hostile.saved(Image.effect_noise((90, 60), 60), "JPEG", progressive=True)
    assert count_scans(progressive) == progressive.count(b"\xff\xda") > 3
    with pytest.raises(ImageError, match="1,006 scans"):
        check_scans(hostile.jpeg_of_scans(64, 1000) + b"video", pixels=4096)


def test_an_image_of_40_megapixels_or_of_one_row_is_read(tmp_path):
    for size in ((8000, 5000), (9000, 1)):
        Image.new("L", size).save(tmp_path / "a.jpg", progressive=True)
        assert open_picture(tmp_path / "a.jpg").size == size


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


@pytest.mark.parametrize("exists", [True, False], ids=["file", "folder"])
def test_a_drawing_must_be_writable(tmp_path, monkeypatch, exists):
    path = tmp_path / "a.png"
    if exists:
        path.touch()
    check_drawing_name("--out", path)
    monkeypatch.setattr(os, "access", lambda place, mode: (place, mode) != (path if exists else tmp_path, os.W_OK))
    with pytest.raises(ValueError, match=r"--out .*a.png: the file, or its folder, is read-only"):
        check_drawing_name("--out", path)


def test_pillows_limit_returns_with_the_last_of_several_threads_that_lifted_it() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    first, second = without_pixel_limit(), without_pixel_limit()
    for step in (first.__enter__, second.__enter__, lambda: first.__exit__(None, None, None)):
        step()
        assert Image.MAX_IMAGE_PIXELS is None
    second.__exit__(None, None, None)
    assert limit == Image.MAX_IMAGE_PIXELS
