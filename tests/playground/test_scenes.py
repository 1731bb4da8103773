"""Scenes: exact by seed, free of ambiguity, and labelled by what covers each cell."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from playground.objects import BACKGROUNDS, COLOURS, SHAPES, SceneObject
from playground.scenes import PRESETS, SceneSpec, cell_labels, label_of, main, scene

PRESET_NAMES = sorted(PRESETS)


@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_a_scene_depends_on_its_spec_seed_and_index_alone(preset):
    spec = PRESETS[preset]
    first, again = scene(spec, 5, 3), scene(spec, 5, 3)
    assert np.array_equal(first.image, again.image)
    assert first.objects == again.objects
    assert not np.array_equal(first.image, scene(spec, 5, 4).image)
    assert not np.array_equal(first.image, scene(spec, 6, 3).image)


@pytest.mark.parametrize("preset", PRESET_NAMES)
@pytest.mark.parametrize("index", range(5))
def test_objects_keep_the_spec_and_their_distance(preset, index):
    spec = PRESETS[preset]
    made = scene(spec, 11, index)
    assert made.image.shape == (spec.size, spec.size, 3)
    assert made.image.dtype == np.uint8
    assert 2 <= len(made.objects) <= 5
    for item in made.objects:
        assert spec.object_size[0] <= item.size <= spec.object_size[1]
        assert all(item.size / 2 <= place <= spec.size - item.size / 2 for place in item.centre)
    for a, b in combinations(made.objects, 2):
        assert a.name != b.name
        assert max(abs(a.centre[0] - b.centre[0]), abs(a.centre[1] - b.centre[1])) > (a.size + b.size) / 2


def test_the_pixel_at_a_centre_has_the_objects_colour():
    spec, seen = SceneSpec(object_size=(30, 40), objects=(2, 2)), set()
    for index in range(80):
        made = scene(spec, 2, index)
        for item in made.objects:
            if item.shape != "ring":
                found = made.image[int(item.centre[0]), int(item.centre[1])].astype(float)
                assert np.abs(found - COLOURS[item.colour]).max() <= 19, item  # tints differ by up to 18
                seen |= {item.colour, item.shape}
    assert seen == {*COLOURS, *SHAPES} - {"ring"}


def test_labels_name_the_object_that_covers_a_cell():
    square = SceneObject("blue", "square", (21.0, 35.0), 28.0)
    labels = cell_labels([square], 112)
    assert labels.shape == (8, 8)
    assert {tuple(cell) for cell in np.argwhere(labels)} == {(row, col) for row in (0, 1, 2) for col in (1, 2, 3)}
    assert set(labels[labels > 0].tolist()) == {1 + label_of(square)}


def test_pairs_have_distinct_numbers():
    numbers = {label_of(SceneObject(colour, shape, (0, 0), 1)) for colour in COLOURS for shape in SHAPES}
    assert numbers == set(range(len(COLOURS) * len(SHAPES)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objects": (-1, 5)}, r"\(-1, 5\)"),
        ({"objects": (4, 3)}, r"\(4, 3\)"),
        ({"object_size": (0, 10)}, r"\(0, 10\)"),
        ({"object_size": (10, 90)}, "56"),
        ({"backgrounds": ("flat", "plaid")}, "plaid"),
        ({"backgrounds": ()}, "backgrounds"),
    ],
)
def test_an_impossible_spec_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SceneSpec(**change)


def test_the_command_writes_pictures_questions_and_answers(tmp_path):
    for name, count in (("two", "2"), ("three", "3")):
        size = ["--size", "56", "--object-size", "6", "12"]
        assert main(["--out", str(tmp_path / name), "--n", count, "--seed", "4", *size]) == 0
    questions, answers = (
        [json.loads(line) for line in (tmp_path / "two" / name).read_text().splitlines()]
        for name in ("questions.jsonl", "answers.jsonl")
    )
    assert [row["question_id"] for row in questions] == [row["question_id"] for row in answers]
    assert {frozenset(row) for row in questions} == {frozenset({"question_id", "image", "text", "category"})}
    assert {frozenset(row) for row in answers} == {frozenset({"question_id", "text"})}
    longer = (tmp_path / "three" / "questions.jsonl").read_text()
    assert longer.startswith((tmp_path / "two" / "questions.jsonl").read_text())
    for name in {row["image"] for row in questions}:
        ours, theirs = (Image.open(tmp_path / folder / "images" / name) for folder in ("two", "three"))
        assert ours.size == (56, 56)
        assert ours.tobytes() == theirs.tobytes()


def test_every_background_can_be_asked_for_alone():
    images = {kind: scene(SceneSpec(backgrounds=(kind,)), 1, 1).image.tobytes() for kind in BACKGROUNDS}
    assert len(set(images.values())) == len(BACKGROUNDS)


def test_a_models_answers_are_not_replaced(tmp_path, capsys):
    answers = json.dumps({"question_id": 1, "text": "a red circle", "model_id": "m", "metadata": {}}) + "\n"
    (tmp_path / "answers.jsonl").write_text(answers)
    assert main(["--out", str(tmp_path), "--n", "1"]) == 2
    assert "answers.jsonl was not written by this command" in capsys.readouterr().err
    assert (tmp_path / "answers.jsonl").read_text() == answers


def test_a_run_that_ends_early_leaves_the_files_of_the_last_one(tmp_path, monkeypatch):
    assert main(["--out", str(tmp_path), "--n", "2"]) == 0
    before = {name: (tmp_path / name).read_text() for name in ("questions.jsonl", "answers.jsonl")}

    def stop(rows):
        yield from list(rows)[0]
        raise KeyboardInterrupt

    monkeypatch.setattr("playground.scenes._flatten", stop)
    assert main(["--out", str(tmp_path), "--n", "3", "--seed", "5"]) == 130
    assert {name: (tmp_path / name).read_text() for name in before} == before
    assert {path.name for path in tmp_path.iterdir()} == {"images", *before}
