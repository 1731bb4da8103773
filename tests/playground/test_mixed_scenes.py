"""Scenes with signs, photographs and sides of different lengths: inside the picture, apart, exact by seed."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from playground.objects import SceneObject, Sign
from playground.presets import NAMED_PRESETS, PRESETS, TRAINING, SceneSpec, evaluation_presets
from playground.questions import KINDS, scene_questions
from playground.scenes import SIGN_LABEL, Scene, cell_labels, label_of, scene, sign_area
from playground.signs import LEAST_READABLE

SPECS = st.builds(
    SceneSpec,
    size=st.sampled_from([112, 150, 224]),
    objects=st.sampled_from([(0, 0), (0, 5), (1, 1), (5, 5)]),
    object_size=st.sampled_from([(6, 12), (6, 48)]),
    aspect=st.sampled_from([(0.5, 0.5), (2.0, 2.0), (0.5, 2.0), (1.0, 1.0)]),
    sign_share=st.sampled_from([0.0, 1.0]),
    unreadable_share=st.sampled_from([0.0, 0.5]),
    backgrounds=st.sampled_from([("flat",), ("gradient", "low"), ("noise", "texture")]),
)


def boxes(made: Scene) -> list[tuple[float, float, float, float]]:
    """(top, left, bottom, right) of every object and of the sign."""
    sides = [(item.centre, (item.size, item.size)) for item in made.objects]
    sides += [] if made.sign is None else [(made.sign.centre, made.sign.box)]
    return [(r - h / 2, c - w / 2, r + h / 2, c + w / 2) for (r, c), (h, w) in sides]


@settings(max_examples=60)
@given(spec=SPECS, index=st.integers(0, 10**6))
def test_everything_is_inside_and_apart(spec, index):
    made = scene(spec, 3, index)
    height, width = made.size
    assert made.image.shape == (height, width, 3) and made.image.dtype == np.uint8
    assert max(height, width) == spec.size
    assert spec.aspect[0] * 0.98 <= width / height <= spec.aspect[1] * 1.02
    assert spec.objects[0] <= len(made.objects) <= spec.objects[1]
    assert (made.sign is not None) == (spec.sign_share == 1)
    for top, left, bottom, right in boxes(made):
        assert top >= 0 and left >= 0 and bottom <= height and right <= width
    for (t1, l1, b1, r1), (t2, l2, b2, r2) in combinations(boxes(made), 2):
        assert max(t1 - b2, t2 - b1, l1 - r2, l2 - r1) > 0


@settings(max_examples=20)
@given(spec=SPECS, index=st.integers(0, 10**6))
def test_a_scene_with_any_settings_depends_on_spec_seed_and_index(spec, index):
    first, again = scene(spec, 3, index), scene(spec, 3, index)
    assert np.array_equal(first.image, again.image)
    assert (first.objects, first.sign, first.ground) == (again.objects, again.sign, again.ground)


@settings(max_examples=20)
@given(index=st.integers(0, 10**6))
def test_labels_of_oblong_pictures_name_what_covers_most_of_each_cell(index):
    spec = SceneSpec(size=112, objects=(1, 1), object_size=(20, 40), backgrounds=("flat",))
    made = scene(spec, 1, index)
    (item,) = made.objects
    square = replace(item, shape="square", centre=(float(round(item.centre[0] / 2) + 2), item.centre[1]))
    labels = cell_labels([square], (70, 112))
    assert labels.shape == (5, 8)
    half = 0.92 * square.size / 2
    sides = [
        [max(0.0, min(c + half, 14 * (k + 1)) - max(c - half, 14 * k)) for k in range(count)]
        for c, count in zip(square.centre, (5, 8), strict=True)
    ]
    area = np.outer(*sides)
    sure = np.abs(area - 4) > 3  # edges are antialiased
    assert np.array_equal((labels == 1 + label_of(square))[sure], (area > 4)[sure])


def test_a_sign_labels_its_cells_by_hand():
    sign = Sign("42", (21.0, 42.0), (14, 28), 8)
    labels = cell_labels([SceneObject("red", "square", (63.0, 21.0), 14)], (70, 84), sign=sign)
    assert labels.tolist() == [
        [0, 0, 0, 0, 0, 0],
        [0, 0, SIGN_LABEL, SIGN_LABEL, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
    ]
    assert sign_area(sign) == (slice(14, 28), slice(28, 56))


def test_readable_signs_are_as_high_as_asked_for_and_the_others_lower():
    spec = replace(TRAINING, sign_share=1.0, unreadable_share=0.5)
    signs = [scene(spec, 2, index).sign for index in range(120)]
    heights = {readable: [sign.height for sign in signs if sign.readable == readable] for readable in (True, False)}
    assert min(heights[True]) >= LEAST_READABLE and max(heights[True]) <= 24
    assert min(heights[False]) >= 2 and max(heights[False]) <= 4
    assert 35 < len(heights[True]) < 85


def test_half_of_the_training_grounds_are_photographs():
    kinds = [scene(TRAINING, 4, index).ground for index in range(200)]
    assert 75 < kinds.count("photo") < 125
    assert len(set(kinds)) == 6


def test_noise_has_the_strength_asked_for():
    spec = SceneSpec(backgrounds=("flat",), objects=(0, 0))
    plain, noisy = (scene(replace(spec, noise=strength), 1, 1).image.astype(float) for strength in (0, 20))
    assert np.std(noisy - plain) == pytest.approx(20, rel=0.03)


GOLDEN = {
    "base": ("30395fb8315b5e06", [115.12, 191.45, 154.71, 161.67]),
    "detail": ("f68a89c8145e1138", [195.26, 95.09, 149.28, 162.81]),
    "detail-smooth": ("f68a89c8145e1138", [198.73, 96.24, 142.81, 163.94]),
    "detail-textured": ("f68a89c8145e1138", [195.31, 95.09, 149.28, 162.81]),
    "large": ("96d4ec37eeba61f0", [115.95, 191.51, 154.76, 161.73]),
}
"""Objects and questions, hashed, and mean levels of four scenes each, noted before signs and photographs were added."""


@pytest.mark.parametrize("preset", PRESETS)
def test_scenes_of_published_figures_stay_as_they_were(preset):
    digest, means = hashlib.sha256(), []
    for index in range(4):
        made = scene(PRESETS[preset], 7500, index)
        items = [(o.name, *(round(value, 6) for value in (*o.centre, o.size))) for o in made.objects]
        asked = scene_questions(made.objects, PRESETS[preset].size, np.random.default_rng((7500, index, 2)), KINDS)
        digest.update(repr(items).encode())
        digest.update(repr([(item.text, item.answer) for item in asked]).encode())
        means.append(float(made.image.mean()))
        assert made.sign is None
    assert digest.hexdigest()[:16] == GOLDEN[preset][0]
    assert means == pytest.approx(GOLDEN[preset][1], abs=0.01)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_presets_use_their_splits_photographs_and_fonts(split):
    presets = evaluation_presets(split)
    assert {spec.photos for spec in presets.values()} == {split}
    assert {spec.fonts for spec in presets.values()} == {"test" if split == "test" else "training"}
    assert all(NAMED_PRESETS[f"{split}/{name}"] == spec for name, spec in presets.items())
    photographs = [spec.backgrounds.count("photo") / len(spec.backgrounds) for name, spec in presets.items()]
    assert sorted(set(photographs)) == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("name", evaluation_presets("validation"))
def test_every_evaluation_preset_can_be_drawn(name):
    made = scene(evaluation_presets("validation")[name], 7500, 1)
    assert max(made.size) == evaluation_presets("validation")[name].size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aspect": (0.2, 1.0)}, r"aspect.*\(0.2, 1.0\)"),
        ({"sign_share": 1.5}, "sign_share.*1.5"),
        ({"sign_share": 0.5, "sign_height": (8, 80)}, r"sign_height.*28.*\(8, 80\)"),
        ({"noise": -1}, "noise.*-1"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SceneSpec(**change)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'train'.*validation"):
        evaluation_presets("train")
