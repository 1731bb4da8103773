"""The generated sets of scenes, by name and split. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from playground.presets import PRESETS, SceneSpec, evaluation_presets

SPLITS = {"validation": 7500, "test": 11500}
"""Series of scenes. Choices are made on the first alone; the second is looked at once, when they are made."""
EARLIER = (9500,)
"""The test split of an earlier choice of defaults."""
SERIES = "series "
"""What the name of any other series of scenes begins with, before its number."""
TRAINING_SEEDS = range(1, 100)
"""Seeds that the embedded models are trained with; no series that is measured may be one of them."""
SCENES = 100
KINDS = ("colour", "shape", "relation", "count", "existence")
"""One question of each about every scene; listing, a long answer that repeats the others, is asked in separate sets.
Scenes with signs have one of "sign" more."""
MEASURES: Mapping[str, tuple[str, ...]] = {
    "V*": ("colour", "shape", "relation"),
    "count": ("count",),
    "existence": ("existence",),
}
"""Kinds of questions of each measure."""
SIZES = {f"{low}-{high} px": (low, high) for low, high in ((6, 12), (12, 24), (24, 48), (48, 96), (96, 192))}
"""Sets by the least and greatest size of their objects in pixels, in pictures of 448 px."""


@dataclass(frozen=True)
class SceneSet:
    """How a set's scenes are drawn."""

    spec: SceneSpec
    noise: float = 0.0
    """Standard deviation of Gaussian noise laid over the whole picture, in levels of 255."""
    kinds: tuple[str, ...] = KINDS
    """Kinds of questions, of which one each is asked about every scene."""


DETAIL = PRESETS["detail"]
BETWEEN = {
    f"{low}-{high} px of {side}": SceneSet(replace(DETAIL, size=side, object_size=(low, high)))
    for low, high in ((6, 12), (12, 24), (24, 48))
    for side in (168, 336, 672, 1344)
}
"""Sets by the size of their objects in pictures whose side is midway between two sizes of the native geometry."""
SCENE_SETS = {
    "base": SceneSet(PRESETS["base"]),
    "large": SceneSet(PRESETS["large"]),
    **{name: SceneSet(replace(DETAIL, object_size=sizes)) for name, sizes in SIZES.items()},
    "noise 20": SceneSet(DETAIL, 20.0),
    "noise 40": SceneSet(DETAIL, 40.0),
    **BETWEEN,
}
DETAIL_SET = "12-24 px"
LISTING_SETS = {f"{name}, listing": replace(SCENE_SETS[name], kinds=("listing",)) for name in (DETAIL_SET, "large")}
"""The same scenes as without ", listing", all of whose objects are asked for."""
SCENE_SETS |= LISTING_SETS
MIXED = "mixed/"
"""Begins the names of sets of which half of the grounds are crops of photographs, `playground`'s evaluation presets."""
MIXED_SETS = tuple(f"{MIXED}{name}" for name, spec in evaluation_presets("validation").items() if spec.objects[0] >= 2)
"""Without those of empty scenes, about which `KINDS` cannot be asked."""
GROUND_SETS = tuple(name for name in MIXED_SETS if name.startswith(f"{MIXED}ground "))
"""Sets of one kind of ground each."""
SET_NAMES = (*SCENE_SETS, *MIXED_SETS)


def find_set(name: str, split: str) -> SceneSet:
    """Finds a set of `SET_NAMES`; in those that begin with `MIXED`, each split has its own photographs and fonts.

    Other series have those of the test split.

    Raises:
        ValueError: the set or the split is unknown.
    """
    series_of(split)
    if name not in SET_NAMES:
        raise ValueError(
            f"no set {name!r} in split {split!r}; sets are {', '.join(SET_NAMES)}, splits {', '.join(SPLITS)}"
        )
    if name in SCENE_SETS:
        return SCENE_SETS[name]
    return SceneSet(evaluation_presets(split if split in SPLITS else "test")[name.removeprefix(MIXED)])


def series_of(split: str) -> int:
    """Finds the number of a split's series of scenes.

    Raises:
        ValueError: the split is neither a name of `SPLITS` nor "series " and a number.
    """
    if split in SPLITS:
        return SPLITS[split]
    number = split.removeprefix(SERIES)
    if number == split or not number.isdecimal():
        raise ValueError(f"no split {split!r}; allowed are {', '.join(SPLITS)}, and {SERIES}NUMBER")
    return int(number)


def new_series(seed: int) -> str:
    """Names the split of a series that nothing was trained, chosen or published on.

    Raises:
        ValueError: it is a split's, or a training's.
    """
    published = (*SPLITS.values(), *EARLIER)
    if seed in published or seed in TRAINING_SEEDS:
        used = ", ".join(map(str, published))
        raise ValueError(f"seed {seed} is not new: {used} are published, below {TRAINING_SEEDS.stop} are for training")
    return f"{SERIES}{seed}"
