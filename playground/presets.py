"""What scenes are drawn from, and the kinds of scenes that have a name. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from playground.objects import BACKGROUNDS, GROUNDS


@dataclass(frozen=True)
class SceneSpec:
    """What scenes are drawn from."""

    size: int = 112
    """Longer side of the image in pixels."""
    objects: tuple[int, int] = (2, 5)
    """Least and greatest number of objects."""
    object_size: tuple[float, float] = (6, 48)
    """Least and greatest side of an object in pixels; drawn log-uniformly."""
    backgrounds: tuple[str, ...] = BACKGROUNDS
    """Kinds of background to choose from; one that occurs twice is chosen twice as often."""
    aspect: tuple[float, float] = (1.0, 1.0)
    """Least and greatest width / height; drawn log-uniformly."""
    photos: str = "training"
    """Split of the photographs that the background `photo` takes its crops from."""
    sign_share: float = 0.0
    """Share of the scenes with a sign."""
    sign_height: tuple[int, int] = (8, 24)
    """Least and greatest height of a readable sign's capitals in pixels; drawn log-uniformly."""
    unreadable_share: float = 0.0
    """Share of the signs whose capitals are too low to be read: 2 to 4 pixels."""
    fonts: str = "training"
    """Split of the fonts of signs: "training" or "test"."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise laid over the whole picture, in levels of 255."""

    def __post_init__(self) -> None:
        least, most = self.objects
        if not 0 <= least <= most <= 5:
            raise ValueError(f"objects must satisfy 0 <= least <= most <= 5, got {self.objects}")
        small, large = self.object_size
        if not 0 < small <= large <= self.size / 2:
            raise ValueError(f"object_size must lie in (0, size / 2 = {self.size / 2}], got {self.object_size}")
        unknown = set(self.backgrounds) - set(GROUNDS)
        if unknown or not self.backgrounds:
            raise ValueError(f"backgrounds must be among {GROUNDS}, got {self.backgrounds}")
        if not 0.5 <= self.aspect[0] <= self.aspect[1] <= 2:
            raise ValueError(f"aspect must satisfy 0.5 <= least <= greatest <= 2, got {self.aspect}")
        if self.sign_share and not 1 <= self.sign_height[0] <= self.sign_height[1] <= self.size / 4:
            raise ValueError(f"sign_height must lie in [1, size / 4 = {self.size / 4}], got {self.sign_height}")
        for name in ("sign_share", "unreadable_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.noise < 0:
            raise ValueError(f"noise must be 0 or more, got {self.noise}")

    @property
    def needs_dialogue(self) -> bool:
        """Whether scenes may have a sign or less than two objects, which `scene_questions` does not ask about."""
        return self.sign_share > 0 or self.objects[0] < 2


MIXED = (*BACKGROUNDS, *("photo",) * len(BACKGROUNDS))
"""Grounds of which half are photographs."""

PRESETS = {
    "base": SceneSpec(),
    "detail": SceneSpec(size=448, object_size=(12, 24)),
    "detail-smooth": SceneSpec(size=448, object_size=(12, 24), backgrounds=("flat", "gradient", "low")),
    "detail-textured": SceneSpec(size=448, object_size=(12, 24), backgrounds=("noise", "texture")),
    "large": SceneSpec(size=448, object_size=(24, 192)),
}
"""Square scenes of shapes on generated grounds."""

TRAINING = SceneSpec(
    objects=(0, 5),
    backgrounds=MIXED,
    aspect=(0.5, 2.0),
    sign_share=0.5,
    sign_height=(8, 24),
    unreadable_share=0.2,
)
"""What the recipe `llava` is trained on: pictures of the tower's own size, with photographs and signs."""

TILED = SceneSpec(size=224, object_size=(6, 96), backgrounds=MIXED, aspect=(0.5, 2.0))
"""What the recipe `tiles` is trained on: pictures twice the size of the tower's, so that tiles show more."""


def evaluation_presets(split: str) -> dict[str, SceneSpec]:
    """Builds the evaluation presets of a split, with its photographs and, for the test, the fonts held out.

    All have grounds of which half are photographs, but for those named by a ground. `native`: 112 px, as in training;
    `native unclear`: with empty scenes, signs too small to read, and pictures of any aspect. `size LOW-HIGH`: objects
    of that many pixels in 448 px pictures; `ground KIND`, `noise STRENGTH` and `aspect tall | square | wide | any` vary
    the 12-24 px objects; `signs LOW-HIGH at SIZE`: every scene has a sign with capitals that high.

    Args:
        split: "validation" or "test".

    Raises:
        ValueError: if there is no such split.
    """
    if split not in ("validation", "test"):
        raise ValueError(f"unknown split {split!r}; allowed: validation, test")
    fonts = "test" if split == "test" else "training"
    native = SceneSpec(backgrounds=MIXED, photos=split, fonts=fonts)
    detail = replace(native, size=448, object_size=(12, 24))
    aspects = {"tall": (0.5, 0.75), "square": (1.0, 1.0), "wide": (1.34, 2.0), "any": (0.5, 2.0)}
    grounds = ("flat", "gradient", "noise", "texture", "photo")
    sizes = ((6, 12), (12, 24), (24, 48), (48, 96), (96, 192))
    signs = ((448, 8, 12), (448, 12, 20), (448, 20, 40), (896, 8, 12), (896, 12, 40), (1344, 8, 40))
    return {
        "native": native,
        "native signs": replace(native, sign_share=1.0),
        "native unclear": replace(TRAINING, photos=split, fonts=fonts),
        **{f"size {low}-{high}": replace(detail, object_size=(low, high)) for low, high in sizes},
        **{f"ground {kind}": replace(detail, backgrounds=(kind,)) for kind in grounds},
        **{f"noise {level}": replace(detail, noise=float(level)) for level in (10, 20, 40)},
        **{f"aspect {name}": replace(detail, aspect=aspect) for name, aspect in aspects.items()},
        **{
            f"signs {low}-{high} at {size}": replace(
                detail, size=size, sign_share=1.0, sign_height=(low, high), object_size=(size / 37, size / 18)
            )
            for size, low, high in signs
        },
    }


NAMED_PRESETS = {
    **PRESETS,
    "training": TRAINING,
    "tiled": TILED,
    **{f"{split}/{name}": spec for split in ("validation", "test") for name, spec in evaluation_presets(split).items()},
}
"""All kinds of scenes that commands take by name."""
