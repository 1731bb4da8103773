"""An image that is prepared ahead gives the model the same tokens as the image itself."""

from __future__ import annotations

import errno
import os
import pickle
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava.eval.run.inputs import image_workers
from llava.eval.run.inputs.preparation import pack, prepare_ahead, unpack
from llava.images import ImageError, load_image
from llava.model.builder import load_empty_tower, load_pretrained_model
from llava.model.vision.prepared_image import PreparedImage
from llava.model.vision.preparer import Preparer, Unreadable
from llava.serve.engine import ChatEngine
from llava.utils import demo_model_path
from playground.scenes import PRESETS, scene

TOWERS: dict[str, Any] = {
    "clip": False,
    "qlip": {"geometry": "grid"},
    "thumbnail": {"geometry": "grid", "thumbnail": True, "llm_positions": "sequential", "image_size": 224},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(scene(PRESETS["detail"], 6, i).image).crop((0, 0, 448 - 90 * i, 300)).save(path)
    return paths


@pytest.fixture(scope="module", params=list(TOWERS))
def engine(request: pytest.FixtureRequest) -> Iterator[ChatEngine]:
    yield ChatEngine(*load_pretrained_model(demo_model_path(), device="cpu", qlip=TOWERS[request.param]))


@torch.inference_mode()
def test_tokens_features_and_places_are_those_of_the_towers_own_pixels(engine: ChatEngine, files: list[Path]) -> None:
    ready = [Preparer.of(engine.model.get_vision_tower())(file) for file in files]
    pixels = [engine.prepare_images([load_image(file)])[0] for file in files]
    expected = engine.model.encode_tokens(pixels)
    tower = engine.model.get_vision_tower()
    found = engine.model.encode_tokens([picture.image for picture in ready if isinstance(picture, PreparedImage)])
    for picture, image, ours, theirs in zip(ready, pixels, found, expected, strict=True):
        assert isinstance(picture, PreparedImage)
        assert picture.tokens == tower.count_tokens(image) == len(theirs.features)
        assert picture.positions == tower.count_positions(image) == theirs.span.length
        assert picture.size == tuple(image.shape[-2:])
        assert torch.equal(ours.features, theirs.features)
        for name in ("positions", "sizes"):
            own, other = getattr(ours.span, name), getattr(theirs.span, name)
            assert (own is None and other is None) or torch.equal(own, other)


def test_the_uniform_grid_is_counted_at_the_same_size(engine: ChatEngine, files: list[Path]) -> None:
    ready = Preparer.of(engine.model.get_vision_tower())(files[0])
    assert isinstance(ready, PreparedImage)
    cells = (ready.size[0] // 14) * (ready.size[1] // 14)
    assert ready.uniform_tokens == cells


@pytest.mark.parametrize("engine", ["clip", "qlip"], indirect=True)
def test_workers_give_what_this_process_gives_in_the_order_asked(
    engine: ChatEngine, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_workers, "MIN_PREPARE_SECONDS", 0.0)  # workers start for few images too
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG nothing")
    sources = [files[2], broken, *files, tmp_path / "missing.png", files[1]]
    preparer = Preparer.of(engine.model.get_vision_tower())
    here, there = (list(prepare_ahead(preparer, sources, workers, ahead=2)) for workers in (0, 1))
    assert [type(item) for item in here] == [PreparedImage, Unreadable, *[PreparedImage] * 3, Unreadable, PreparedImage]
    with torch.inference_mode():
        for one, other in zip(here, there, strict=True):
            if isinstance(one, Unreadable):
                assert one == other
                continue
            assert replace(one, image=None) == replace(other, image=None)
            ours, theirs = engine.model.encode_tokens([one.image]) + engine.model.encode_tokens([other.image])
            assert torch.equal(ours.features, theirs.features)


def test_an_image_that_awaits_a_question_travels_with_all_that_it_may_become(files: list[Path]) -> None:
    tower = load_empty_tower(demo_model_path(), qlip={"budget": "question", "thumbnail": True})
    ready = Preparer.of(tower)(files[1])
    assert isinstance(ready, PreparedImage) and ready.question is not None
    again = unpack(pickle.loads(pickle.dumps(pack(ready))))
    for weights in torch.rand(4, ready.first_tokens, generator=torch.Generator().manual_seed(0)):
        ours, theirs = ready.refine(weights), again.refine(weights)
        assert replace(ours, image=None) == replace(theirs, image=None)
        assert ours.tokens > ready.first_tokens
        assert torch.equal(ours.leaves.boxes, theirs.leaves.boxes)
        for name in ("patches", "thumbnail"):
            assert torch.equal(getattr(ours.image, name), getattr(theirs.image, name))


def test_training_is_cut_by_the_score_whatever_the_checkpoint_says(files: list[Path]) -> None:
    by_question, by_score = (
        Preparer.of(load_empty_tower(demo_model_path(), qlip={"budget": budget})) for budget in ("question", "score")
    )
    assert by_question.by_score() == by_score
    clip = Preparer.of(load_empty_tower(demo_model_path(), qlip=False))
    assert clip.by_score() is clip


def test_an_unreadable_image_has_a_reason(engine: ChatEngine, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    preparer = Preparer.of(engine.model.get_vision_tower())
    assert preparer(tmp_path / "a.png") == Unreadable(f"no such image file: {tmp_path / 'a.png'}")
    unreadable = preparer(broken)
    assert isinstance(unreadable, Unreadable)
    assert unreadable.reason.startswith("not a readable image")


def test_a_path_that_the_system_refuses_is_reported_like_others(
    engine: ChatEngine, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    preparer, stat = Preparer.of(engine.model.get_vision_tower()), Path.stat

    def refused(path: Path, **options: Any) -> os.stat_result:
        if path == files[0]:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refused)
    assert preparer(files[0]) == Unreadable(f"cannot read {files[0]}: Permission denied")
    long = files[0].with_name("x" * 300)
    assert preparer(long) == Unreadable(f"cannot read {long}: File name too long")


def test_a_large_file_of_the_users_own_is_taken(engine: ChatEngine, tmp_path: Path) -> None:
    """21 MiB, beyond what servers take; Pillow's own limit on pixels is another."""
    preparer, large = Preparer.of(engine.model.get_vision_tower()), tmp_path / "large.png"
    Image.new("RGB", (2700, 2720)).save(large, compress_level=0)
    with pytest.raises(ImageError, match="larger than 20,971,520 bytes"):
        load_image(large)
    assert isinstance(preparer(large), PreparedImage)


def declared(path: Path, width: int, height: int) -> Path:
    """Writes an image that declares this size but holds no such pixels."""
    Image.new("L", (8, 8)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    path.write_bytes(content)
    return path


@pytest.mark.filterwarnings("error")  # Pillow's, of a decompression bomb
@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((25_000, 20_000), "not a readable image"),  # allowed, and decoded
        ((25_000, 20_001), "at most 500,000,000 pixels are allowed"),
        ((40_000, 1_000), "each side may have at most 32768"),
    ],
)
def test_the_most_pixels_are_ours_not_pillows(
    engine: ChatEngine, tmp_path: Path, size: tuple[int, int], words: str
) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    found = Preparer.of(engine.model.get_vision_tower())(declared(tmp_path / "a.png", *size))
    assert isinstance(found, Unreadable)
    assert words in found.reason
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_tower_without_weights_prepares_as_the_loaded_one(engine: ChatEngine, files: list[Path]) -> None:
    empty = load_empty_tower(demo_model_path(), qlip=engine.model.config.qlip)
    (ours, theirs) = (Preparer.of(tower)(files[1]) for tower in (empty, engine.model.get_vision_tower()))
    assert isinstance(ours, PreparedImage) and isinstance(theirs, PreparedImage)
    assert replace(ours, image=None) == replace(theirs, image=None)
    with torch.inference_mode():
        features = [engine.model.encode_tokens([ready.image])[0].features for ready in (ours, theirs)]
    assert torch.equal(*features)
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
