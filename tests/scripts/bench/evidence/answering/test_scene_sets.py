"""Names of sets and splits: what a split keeps to itself, and what is asked."""

from __future__ import annotations

import pytest

from playground.scenes import scene
from scripts.bench.evidence.answering.scene_sets import (
    KINDS,
    MIXED_SETS,
    SCENE_SETS,
    SPLITS,
    find_set,
    new_series,
    series_of,
)
from scripts.bench.evidence.answering.sets import draw_set

SIGNS = "mixed/signs 8-12 at 448"


def test_a_split_has_photographs_and_fonts_to_itself() -> None:
    specs = {split: find_set(SIGNS, split).spec for split in SPLITS}
    assert {split: spec.photos for split, spec in specs.items()} == {"validation": "validation", "test": "test"}
    assert specs["test"].fonts == "test" != specs["validation"].fonts


def test_scenes_with_signs_are_asked_what_it_says() -> None:
    (asked,) = draw_set(SIGNS, "test", 1).questions
    made = scene(find_set(SIGNS, "test").spec, SPLITS["test"], 0)
    assert [item.category for item in asked] == [*KINDS, "sign"]
    assert made.sign is not None
    assert asked[-1].answer == made.sign.text


@pytest.mark.parametrize("name", MIXED_SETS)
def test_every_set_can_be_asked_about(name: str) -> None:
    (asked,) = draw_set(name, "validation", 1).questions
    assert [item.category for item in asked][:5] == list(KINDS)


def test_the_published_sets_are_the_same_in_both_splits() -> None:
    for name, chosen in SCENE_SETS.items():
        assert find_set(name, "validation") is find_set(name, "test") is chosen


def test_a_set_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match=r"no set 'mixed/native unclear' in split 'test'; sets are base, .*validation"):
        find_set("mixed/native unclear", "test")


def test_splits_are_names_or_series() -> None:
    assert (series_of("test"), series_of(new_series(20261126))) == (11500, 20261126)
    for wrong in ("train", "series", "series x"):
        with pytest.raises(ValueError, match=f"{wrong!r}.*validation, test, and series NUMBER"):
            series_of(wrong)
