"""The tower's training pictures: padded as LLaVA pads them, labelled after padding, mirrored without their signs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from llava.mm_utils import process_images
from llava.model.multimodal_encoder.pretrained import default_image_processor
from playground.dialogue import full_listing
from playground.model import LLAVA, vision_config
from playground.objects import Sign
from playground.picture_cache import PictureCache, cell_characters, encode_text, pad_to_square
from playground.presets import TRAINING
from playground.scenes import SIGN_LABEL, cell_labels, scene, sign_area
from playground.signs import CHARACTERS
from playground.stages import normalise

COUNT = 16


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return PictureCache(tmp_path_factory.mktemp("pictures"), TRAINING, seed=6, count=COUNT)


def test_padded_pictures_are_what_llava_feeds_the_tower():
    processor = default_image_processor(vision_config(LLAVA))
    config = SimpleNamespace(image_aspect_ratio="pad")
    for index in range(4):
        made = scene(TRAINING, 6, index)
        theirs = process_images([Image.fromarray(made.image)], processor, config)[0]
        ours = normalise(torch.from_numpy(pad_to_square(made).image[None].copy()))[0]
        torch.testing.assert_close(ours, theirs.float(), atol=1e-4, rtol=0)


def test_padding_moves_objects_and_sign_with_the_pixels():
    spec = replace(TRAINING, sign_share=1.0, aspect=(2.0, 2.0), objects=(1, 3))
    made = scene(spec, 6, 3)
    padded = pad_to_square(made)
    assert np.array_equal(padded.image[28:84], made.image)
    assert [item.centre[0] - 28 for item in padded.objects] == [item.centre[0] for item in made.objects]
    assert np.array_equal(padded.image[sign_area(padded.sign)], made.image[sign_area(made.sign)])


def test_batches_are_scenes_or_mirror_images_with_their_captions(cache):
    scenes = [pad_to_square(scene(TRAINING, 6, index)) for index in range(COUNT)]
    known = {made.image.tobytes(): made for made in scenes}
    batch = cache.batch(40, np.random.default_rng(0))
    mirrored = 0
    for image, labels, text, caption in zip(batch.images, batch.labels, batch.texts, batch.captions, strict=True):
        made = known.get(image.tobytes())
        if made is None:
            made = known[np.ascontiguousarray(image[:, ::-1]).tobytes()]
            assert made.sign is None
            made = replace(
                made, objects=tuple(replace(o, centre=(o.centre[0], 112 - o.centre[1])) for o in made.objects)
            )
            mirrored += 1
            labels = labels[:, ::-1]
            assert (labels > 0).any() == bool(made.objects)
        else:
            assert np.array_equal(labels, cell_labels(made.objects, 112, sign=made.sign))
        assert caption == full_listing(made.objects, made.sign)
        assert np.array_equal(text, encode_text(made.sign))
    assert 0 < mirrored < 40
    assert (batch.labels == SIGN_LABEL).any()


def test_texts_are_encoded_by_character():
    codes = encode_text(Sign("42", (0, 0), (1, 1), 9)).tolist()
    assert codes == [1 + CHARACTERS.index("4"), 1 + CHARACTERS.index("2"), 0, 0]
    assert encode_text(Sign("42", (0, 0), (1, 1), 2, readable=False)).tolist() == encode_text(None).tolist() == [0] * 4


def test_characters_by_cell_by_hand():
    sign = Sign("42", (21.0, 28.0), (14, 28), 10, edges=(2.0, 12.0, 26.0))  # plate: rows 14-28, columns 14-42
    four, two = (1 + CHARACTERS.index(character) for character in "42")
    assert cell_characters(sign, 56).tolist() == [[0, 0, 0, 0], [0, four, two, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert not cell_characters(replace(sign, readable=False), 56).any() and not cell_characters(None, 56).any()


def test_characters_are_on_cells_of_signs_alone(cache):
    batch = cache.batch(40, np.random.default_rng(1))
    assert (batch.labels[batch.characters > 0] == SIGN_LABEL).all()
    for characters, text in zip(batch.characters, batch.texts, strict=True):
        assert set(characters[characters > 0].tolist()) <= set(text.tolist())


def test_pictures_are_drawn_once(cache, tmp_path):
    PictureCache(tmp_path, TRAINING, seed=6, count=2)
    drawn = (tmp_path / "images.npy").stat().st_mtime_ns
    PictureCache(tmp_path, TRAINING, seed=6, count=2)
    assert (tmp_path / "images.npy").stat().st_mtime_ns == drawn
    PictureCache(tmp_path, TRAINING, seed=7, count=2)
    assert (tmp_path / "images.npy").stat().st_mtime_ns > drawn
