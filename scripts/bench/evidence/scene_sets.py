"""The generated sets of scenes, by name and split. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from playground.presets import PRESETS, SceneSpec, evaluation_presets

SPLITS = {"validation": 7500, "test": 9500}
"""Series of scenes. Choices are made on the first alone; the second is looked at once, when they are made."""
SCENES = 100
KINDS = ("colour", "shape", "relation", "count", "existence")
"""One question of each about every scene; listing, a long answer that repeats the others, is left out. Scenes with
signs have one of "sign" more."""
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
MIXED = "mixed/"
"""Begins the names of sets of which half of the grounds are crops of photographs, `playground`'s evaluation presets."""
MIXED_SETS = tuple(f"{MIXED}{name}" for name, spec in evaluation_presets("validation").items() if spec.objects[0] >= 2)
"""Without those of empty scenes, about which `KINDS` cannot be asked."""
SET_NAMES = (*SCENE_SETS, *MIXED_SETS)


def find_set(name: str, split: str) -> SceneSet:
    """Finds a set of `SET_NAMES`; in those that begin with `MIXED`, a split has photographs and fonts to itself.

    Raises:
        ValueError: the set or the split is unknown.
    """
    if name not in SET_NAMES or split not in SPLITS:
        raise ValueError(
            f"no set {name!r} in split {split!r}; sets are {', '.join(SET_NAMES)}, splits {', '.join(SPLITS)}"
        )
    if name in SCENE_SETS:
        return SCENE_SETS[name]
    return SceneSet(evaluation_presets(split)[name.removeprefix(MIXED)])
