"""The generated sets of scenes, by name and split. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from playground.presets import PRESETS, SceneSpec

SPLITS = {"validation": 7500, "test": 9500}
"""Series of scenes. Choices are made on the first alone; the second is looked at once, when they are made."""
SERIES = "series "
"""What the name of any other series of scenes begins with, before its number."""
TRAINING_SEEDS = range(1, 100)
"""Seeds that the embedded models are trained with; no series that is measured may be one of them."""
SCENES = 100
KINDS = ("colour", "shape", "relation", "count", "existence")
"""One question of each about every scene; listing, a long answer that repeats the others, is left out."""
SIZES = {f"{low}-{high} px": (low, high) for low, high in ((6, 12), (12, 24), (24, 48), (48, 96), (96, 192))}
"""Sets by the least and greatest size of their objects in pixels, in pictures of 448 px."""


@dataclass(frozen=True)
class SceneSet:
    """How a set's scenes are drawn."""

    spec: SceneSpec
    noise: float = 0.0
    """Standard deviation of Gaussian noise laid over the whole picture, in levels of 255."""


DETAIL = PRESETS["detail"]
SCENE_SETS = {
    "base": SceneSet(PRESETS["base"]),
    "large": SceneSet(PRESETS["large"]),
    **{name: SceneSet(replace(DETAIL, object_size=sizes)) for name, sizes in SIZES.items()},
    "noise 20": SceneSet(DETAIL, 20.0),
    "noise 40": SceneSet(DETAIL, 40.0),
}
DETAIL_SET = "12-24 px"


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
    if seed in SPLITS.values() or seed in TRAINING_SEEDS:
        used = ", ".join(map(str, SPLITS.values()))
        raise ValueError(f"seed {seed} is not new: {used} are published, below {TRAINING_SEEDS.stop} are for training")
    return f"{SERIES}{seed}"
