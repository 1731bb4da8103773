"""The scene cache: drawn once, the same scenes, mirrored consistently."""

from __future__ import annotations

import numpy as np
import pytest

from playground.dataset import SceneCache
from playground.scenes import PRESETS, cell_labels, scene


def test_the_cache_is_drawn_once(tmp_path):
    first = SceneCache(tmp_path, PRESETS["base"], seed=1, count=3)
    drawn = (tmp_path / "images.npy").stat().st_mtime_ns
    again = SceneCache(tmp_path, PRESETS["base"], seed=1, count=3)
    assert (tmp_path / "images.npy").stat().st_mtime_ns == drawn
    ours, theirs = (cache.batch(4, np.random.default_rng(0)) for cache in (first, again))
    assert np.array_equal(ours.images, theirs.images)
    assert ours.objects == theirs.objects


def test_another_seed_is_drawn_anew(tmp_path):
    first = SceneCache(tmp_path, PRESETS["base"], seed=1, count=3).batch(4, np.random.default_rng(0))
    other = SceneCache(tmp_path, PRESETS["base"], seed=2, count=3).batch(4, np.random.default_rng(0))
    assert not np.array_equal(first.images, other.images)


def test_images_labels_and_objects_are_a_scenes_or_its_mirror_images(scenes):
    batch = scenes.batch(16, np.random.default_rng(2))
    originals = {made.image.tobytes(): made for made in (scene(scenes.spec, 3, index) for index in range(12))}
    mirrored = 0
    for image, labels, objects in zip(batch.images, batch.labels, batch.objects, strict=True):
        made = originals.get(image.tobytes())
        if made is None:
            made = originals[image[:, ::-1].tobytes()]
            labels = labels[:, ::-1]
            mirrored += 1
            cols = [112 - item.centre[1] for item in made.objects]
        else:
            cols = [item.centre[1] for item in made.objects]
        assert np.array_equal(labels, cell_labels(made.objects, 112))
        assert [item.name for item in objects] == [item.name for item in made.objects]
        assert [item.centre[1] for item in objects] == pytest.approx(cols, abs=1e-4)
        assert [item.centre[0] for item in objects] == pytest.approx([o.centre[0] for o in made.objects], abs=1e-4)
    assert 0 < mirrored < 16
