"""Lengths measured before training: those that the collator finds, by any number of processes, kept between runs."""

from __future__ import annotations

import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava.conversation import conv_templates
from llava.model.loading.tokenizer import load_tokenizer
from llava.model.vision import preparer as module
from llava.model.vision.preparer import Preparer
from llava.train.data.dataset import LazySupervisedDataset
from llava.train.data.lengths import LENGTHS_FILE, _read, _write, fingerprint, measure_lengths, without_pixels
from qlip.config import QLIPConfig
from qlip.cutting import ImageCutter
from tests.llava.checkpoints import write_tokenizer

PROCESSOR = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
CLIP = Preparer(PROCESSOR, None, "pad", native_tokens=16)
QLIP = Preparer(ImageCutter(14, 56), QLIPConfig(alpha=0.2, thumbnail=True), None, native_tokens=16)
SIZES = {"a.png": (56, 84), "b.png": (140, 56), "c.png": (28, 28)}
SAMPLES = [
    *({"image": name, "text": "<image>\nwhat is it?"} for name in SIZES),
    {"text": "say hello"},
    {"image": ["a.png", "c.png"], "text": "<image>\n<image>\nwhat differs?"},
    {"text": "a long question " * 200},
    {"image": "a.png", "text": "<image>\n" + "is it red? " * 12},
]
TOO_LONG = 5
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
COUNTS = {
    (200, 200): (1176, 1728),
    (336, 336): (1176, 1728),
    (448, 448): (2928, 2880),
    (672, 672): (2928, 2880),
    (1000, 1000): (2928, 2880),
    (640, 480): (2340, 2880),
    (1024, 768): (2340, 2880),
    (480, 640): (2352, 2880),
    (1920, 1080): (1948, 2880),
    (1080, 1920): (1968, 2880),
    (1000, 500): (1752, 1728),
    (500, 1000): (1776, 1728),
    (1500, 500): (2328, 2304),
    (500, 1500): (2376, 2304),
    (2000, 400): (1598, 2304),
}
"""(width, height) -> tokens by upstream's functions under ViT-L/14-336: "spatial_unpad", "spatial"."""


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for name, size in SIZES.items():
        noise = generator.integers(0, 255, (*size, 3), dtype=np.uint8)
        noise[:, : size[1] // 2] = 100
        Image.fromarray(noise).save(tmp_path / name)
    write_tokenizer(tmp_path)
    write_samples(tmp_path, SAMPLES)
    return tmp_path


def write_samples(folder, samples) -> None:
    turns = ({"from": "human"}, {"from": "gpt", "value": "a red circle"})
    written = [
        {"id": str(i), **({"image": sample["image"]} if "image" in sample else {})}
        | {"conversations": [{**turns[0], "value": sample["text"]}, turns[1]]}
        for i, sample in enumerate(samples)
    ]
    (folder / "samples.json").write_text(json.dumps(written))


def open_dataset(folder, preparer=QLIP, **changes) -> LazySupervisedDataset:
    settings = {
        "image_folder": str(folder),
        "is_multimodal": True,
        "mm_use_im_start_end": False,
        "image_aspect_ratio": "pad",
        "preparer": preparer,
        "template": conv_templates["v1"],
        "max_length": 250,
        "max_bad_samples": 1,
        **changes,
    }
    return LazySupervisedDataset(folder / "samples.json", load_tokenizer(folder), SimpleNamespace(**settings))


def lengths_of_items(dataset) -> list[int]:
    """Text, and the tokens of the images instead of their placeholders."""
    lengths = []
    for item in (dataset[i] for i in range(len(dataset))):
        used = "skipped" not in item
        lengths.append(len(item["input_ids"]) - len(item["images"]) + item["visual_tokens"] if used else 0)
    return lengths


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("preparer", [CLIP, QLIP], ids=["clip", "qlip"])
def test_lengths_are_those_of_the_prepared_samples(folder, preparer, workers):
    dataset = open_dataset(folder, preparer)
    wanted = lengths_of_items(dataset)
    measured = measure_lengths(dataset, workers)
    assert measured.dtype == np.int64
    assert measured.tolist() == wanted
    assert [i for i, length in enumerate(wanted) if not length] == [TOO_LONG]
    assert dataset.preparer is preparer


def test_images_of_one_size_are_not_opened_and_leaves_not_cut_out(folder, monkeypatch):
    for cut in ("extract_patches", "extract_native"):
        monkeypatch.setattr(f"qlip.cutting.{cut}", lambda *_: pytest.fail("leaves were cut out"))
    measure_lengths(open_dataset(folder, QLIP))
    monkeypatch.setattr(module, "load_image", lambda *_: pytest.fail("an image was opened"))
    measure_lengths(open_dataset(folder, CLIP))


@pytest.mark.parametrize("merge", ["spatial_unpad", "spatial"])
def test_tokens_of_tiles_are_counted_from_an_images_size(tmp_path, monkeypatch, merge):
    """Upstream's counts, upright; those of all prepared images where there are fewer tiles to prepare."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    preparer = Preparer(processor, None, "anyres", 576, pinpoints=PINPOINTS, merge=merge)
    counting = without_pixels(SimpleNamespace(preparer=preparer)).preparer
    for (width, height), counts in COUNTS.items():
        file = tmp_path / f"{width}x{height}.jpg"
        exif = Image.Exif()
        exif[0x0112] = 6  # a quarter turn: the file's rows are columns
        Image.new("RGB", (height, width)).save(file, exif=exif)
        assert counting(file).tokens == counts[merge == "spatial"], file.name
        if width * height < 300_000:
            prepared = preparer(file)
            assert counting(file).tokens == prepared.tokens and counting(file).tiles == prepared.tiles
    monkeypatch.setattr(module, "load_image", lambda *_: pytest.fail("an image was opened"))
    assert counting(file).tokens
    assert "no such image file" in counting(tmp_path / "none.jpg").reason


@pytest.mark.parametrize("ratio", ["anyres", "anyres_max_1"])
def test_lengths_of_samples_with_tiles_are_those_of_the_prepared(folder, ratio):
    tiles = {"pinpoints": [[56, 112], [112, 56], [112, 112]], "merge": "spatial_unpad"}
    dataset = open_dataset(folder, Preparer(PROCESSOR, None, ratio, native_tokens=16, **tiles))
    wanted = lengths_of_items(dataset)
    assert measure_lengths(dataset).tolist() == wanted
    assert [i for i, length in enumerate(wanted) if not length] == [TOO_LONG]


def run_together(world: int, measure) -> list:
    """Runs `measure(rank, gather)` in a thread for each process; `gather` collects one object of each."""
    barrier, slots = Barrier(world, timeout=60), [None] * world

    def gather(rank, item):
        slots[rank] = item
        barrier.wait()
        items = list(slots)
        barrier.wait()  # nobody writes the next object before all have read these
        return items

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(lambda rank: measure(rank, partial(gather, rank)), range(world)))


def test_each_process_measures_a_share_and_gets_all_lengths(folder, monkeypatch):
    dataset, measured = open_dataset(folder), []
    wanted = lengths_of_items(dataset)
    getitem = LazySupervisedDataset.__getitem__
    monkeypatch.setattr(LazySupervisedDataset, "__getitem__", lambda self, i: (measured.append(i), getitem(self, i))[1])
    results = run_together(3, lambda rank, gather: measure_lengths(dataset, 0, rank, 3, gather, folder))
    assert [result.tolist() for result in results] == [wanted] * 3
    assert sorted(measured) == list(range(len(SAMPLES)))
    measured.clear()
    results = run_together(2, lambda rank, gather: measure_lengths(dataset, 0, rank, 2, gather, folder))
    assert [result.tolist() for result in results] == [wanted] * 2
    assert measured == [TOO_LONG]


def test_known_lengths_are_read_and_the_unusable_measured_again(folder):
    (folder / "b.png").rename(folder / "elsewhere.png")
    wanted = lengths_of_items(open_dataset(folder))
    assert measure_lengths(open_dataset(folder), folder=folder).tolist() == wanted
    assert [i for i, length in enumerate(wanted) if not length] == [1, TOO_LONG]
    (folder / "elsewhere.png").rename(folder / "b.png")
    wanted = lengths_of_items(open_dataset(folder))
    (folder / "a.png").unlink()  # of samples whose lengths are known
    assert measure_lengths(open_dataset(folder, max_bad_samples=3), folder=folder).tolist() == wanted
    assert wanted[1]


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 251},
        {"template": conv_templates["llava_llama_2"]},
        {"mm_use_im_start_end": True},
        {"preparer": Preparer(ImageCutter(14, 56), QLIPConfig(alpha=0.3, thumbnail=True), None, 16)},
        {"image_folder": tempfile.gettempdir(), "max_bad_samples": 9},  # its images are not there
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_have_another_fingerprint(folder, change):
    assert fingerprint(open_dataset(folder)) == fingerprint(open_dataset(folder))
    assert fingerprint(open_dataset(folder)) != fingerprint(open_dataset(folder, **change))


def test_a_changed_file_or_tokenizer_has_another_fingerprint(folder):
    before = fingerprint(open_dataset(folder))
    os.utime(folder / "samples.json", (1, 1))
    touched = fingerprint(open_dataset(folder))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "legacy": True}))
    assert len({before, touched, fingerprint(open_dataset(folder))}) == 3


def test_lengths_of_other_samples_and_a_damaged_file_are_measured_again(folder, caplog):
    wanted = measure_lengths(open_dataset(folder), folder=folder).tolist()
    write_samples(folder, SAMPLES[:3])
    assert measure_lengths(open_dataset(folder), folder=folder).tolist() == wanted[:3]
    (folder / LENGTHS_FILE).write_bytes(b"PK damaged")
    assert measure_lengths(open_dataset(folder), folder=folder).tolist() == wanted[:3]
    assert f"{folder / LENGTHS_FILE} cannot be read" in caplog.text
    assert not list(folder.glob(f"*{LENGTHS_FILE}.*"))


def test_no_damaged_byte_of_the_file_ends_training(tmp_path):
    """The ZIP format's flags, versions and methods raise errors of many types."""
    file = tmp_path / "lengths.npz"
    _write(file, "mark", np.arange(8))
    data = file.read_bytes()
    for place in range(len(data)):
        for value in (0, 8, 255, data[place] ^ 1):
            file.write_bytes(data[:place] + bytes([value]) + data[place + 1 :])
            found = _read(file, "mark", 8)
            assert found is None or found.shape == (8,)


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_unreadable_images_end_the_run(folder, workers):
    (folder / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"max_bad_samples allows 1: .*samples\.json: sample 0: .*a\.png"):
        measure_lengths(open_dataset(folder), workers)


def test_malformed_samples_and_unreadable_images_are_counted_together(folder):
    samples = json.loads((folder / "samples.json").read_text())
    (folder / "samples.json").write_text(json.dumps([{"id": "no conversation"}, *samples[1:]]))
    (folder / samples[1]["image"]).write_bytes(b"no image")
    unreadable = sum(sample.get("image") == samples[1]["image"] for sample in samples[1:])
    measure_lengths(open_dataset(folder, max_bad_samples=1 + unreadable))
    with pytest.raises(ValueError, match=f"{1 + unreadable} samples cannot be used, and .* allows {unreadable}: "):
        measure_lengths(open_dataset(folder, max_bad_samples=unreadable))


def test_unreadable_images_of_all_processes_are_added_up(folder):
    (folder / "a.png").write_bytes(b"no image")
    dataset = open_dataset(folder, max_bad_samples=2)

    def measure(rank, gather):
        with pytest.raises(ValueError, match="3 samples cannot be used"):
            measure_lengths(dataset, 0, rank, 3, gather)

    run_together(3, measure)


def test_what_is_left_out_is_logged(folder, caplog):
    caplog.set_level("INFO")
    measure_lengths(open_dataset(folder))
    assert "7 samples" in caplog.text
    assert "1 left out, 1 of them too long" in caplog.text
