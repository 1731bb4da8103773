"""Training batches: the draws, each process's share, and files that can't be read."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from qlip import QLIPConfig, QLIPImageProcessor
from qlip.images.pictures import crop_square, find_pictures
from qlip.prior.batches import PictureBatches

SIZES = [(60, 60), (90, 60), (60, 120), (140, 100), (56, 70)]  # (width, height)
PROCESSOR = QLIPImageProcessor(14, 56, qlip=QLIPConfig.paper(max_tokens=36))


@pytest.fixture
def folder(tmp_path):
    """Flat pictures, each of a grey of its own, in two classes as image sets are laid out."""
    for i, size in enumerate(SIZES):
        path = tmp_path / "train" / f"class{i % 2}" / f"{i}.{('png', 'jpg')[i % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (40 * i + 20,) * 3).save(path)
    return tmp_path


def batches(folder, **changes):
    settings = {"batch": 2, "largest_size": 84, "alpha": (0.0, 0.1), "seed": 3, **changes}
    return PictureBatches(find_pictures(folder), PROCESSOR, **settings)


def greys(batch) -> list[int]:
    """Which pictures a batch holds, read off its pixels."""
    mean, std = PROCESSOR.image_mean[0], PROCESSOR.image_std[0]
    return [round(float((image[0].mean() * std + mean) * 255 - 20) / 40) for image in batch.images]


def test_an_epoch_shows_every_picture_and_fills_its_last_batch(folder):
    data = batches(folder)
    assert data.per_epoch == 3
    seen = [name for step in range(3) for name in greys(data[step])]
    assert sorted(seen[:5]) == [0, 1, 2, 3, 4] and seen[5] == seen[0]


def test_epochs_differ_in_order_and_steps_in_what_is_drawn(folder):
    data = batches(folder)
    orders = {tuple(name for step in range(3) for name in greys(data[3 * epoch + step])) for epoch in range(6)}
    assert len(orders) > 3
    assert len({data[step].alphas[0] for step in range(12)}) == 12


def test_a_step_gives_the_same_batch_whatever_came_before(folder):
    walked = batches(folder)
    for step in range(5):
        walked[step]
    direct, again = batches(folder)[5], walked[5]
    assert direct.alphas == again.alphas and direct.seeds == again.seeds
    assert all(torch.equal(a, b) for a, b in zip(direct.images, again.images, strict=True))
    assert batches(folder, seed=4)[5].alphas != direct.alphas


def test_processes_share_out_the_batch_of_one(folder):
    whole = batches(folder, batch=4)[1]
    shares = [batches(folder, batch=4, share=(rank, 2))[1] for rank in range(2)]
    assert [greys(share) for share in shares] == [greys(whole)[0::2], greys(whole)[1::2]]
    for name in ("alphas", "seeds"):
        drawn = getattr(whole, name)
        assert [getattr(share, name) for share in shares] == [drawn[0::2], drawn[1::2]]
    assert {image.shape for share in shares for image in share.images} == {image.shape for image in whole.images}


def test_sizes_and_thresholds_lie_in_their_ranges_and_reach_both_ends(folder):
    data = batches(folder, batch=1)
    drawn = [data[step] for step in range(40)]
    assert all(batch.references.shape == (1, 3, 56, 56) for batch in drawn)
    assert {min(batch.images[0].shape[1:]) for batch in drawn} == {56, 70, 84}
    alphas = [alpha for batch in drawn for alpha in batch.alphas]
    assert all(0 <= alpha < 0.1 for alpha in alphas) and max(alphas) > 0.09


def test_shape_decides_between_the_whole_picture_and_its_central_square(tmp_path):
    pixels = np.zeros((60, 180, 3), np.uint8)
    pixels[:, :60, 0] = pixels[:, 60:120, 1] = pixels[:, 120:, 2] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    whole, square = (batches(tmp_path, batch=1, shape=shape)[0] for shape in ("native", "cropped"))
    height, width = whole.images[0].shape[1:]
    assert width == 3 * height and square.images[0].shape == (3, height, height)
    bright = [reference[0].mean((1, 2)) > -1 for reference in (whole.references, square.references)]
    assert bright[0].tolist() == [True, True, True] and bright[1].tolist() == [False, True, False]
    assert crop_square(Image.fromarray(pixels)).size == (60, 60)


def test_a_file_that_cannot_be_read_is_named_once_and_replaced(folder, caplog):
    broken = folder / "train" / "broken.jpg"
    broken.write_bytes((folder / "train" / "class1" / "3.jpg").read_bytes()[:200])
    data = batches(folder)
    with caplog.at_level(logging.WARNING):
        filled = [len(data[step].images) for step in range(9)]
    assert set(filled) == {2}
    assert [str(broken) in message for message in caplog.messages] == [True]


def test_a_folder_of_broken_files_alone_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"none of the 1 images can be read.*a\.png"):
        batches(tmp_path)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"largest_size": 42}, "largest_size is 42; it must be at least the native size 56"),
        ({"batch": 3, "share": (0, 2)}, "batch is 3; 2 processes share it"),
        ({"batch": 0}, "batch is 0"),
        ({"shape": "round"}, "shape is 'round'"),
    ],
)
def test_bad_settings_are_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        batches(folder, **changes)
