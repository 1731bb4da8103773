"""What scenes are drawn from, and the kinds of scenes that have a name. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from playground.objects import BACKGROUNDS


@dataclass(frozen=True)
class SceneSpec:
    """What scenes are drawn from."""

    size: int = 112
    """Side of the square image in pixels."""
    objects: tuple[int, int] = (2, 5)
    """Least and greatest number of objects."""
    object_size: tuple[float, float] = (6, 48)
    """Least and greatest side of an object in pixels; drawn log-uniformly."""
    backgrounds: tuple[str, ...] = BACKGROUNDS
    """Kinds of background to choose from."""

    def __post_init__(self) -> None:
        least, most = self.objects
        if not 2 <= least <= most <= 5:
            raise ValueError(f"objects must satisfy 2 <= least <= most <= 5, got {self.objects}")
        small, large = self.object_size
        if not 0 < small <= large <= self.size / 2:
            raise ValueError(f"object_size must lie in (0, size / 2 = {self.size / 2}], got {self.object_size}")
        unknown = set(self.backgrounds) - set(BACKGROUNDS)
        if unknown or not self.backgrounds:
            raise ValueError(f"backgrounds must be among {BACKGROUNDS}, got {self.backgrounds}")


PRESETS = {
    "base": SceneSpec(),
    "detail": SceneSpec(size=448, object_size=(12, 24)),
    "detail-smooth": SceneSpec(size=448, object_size=(12, 24), backgrounds=("flat", "gradient", "low")),
    "detail-textured": SceneSpec(size=448, object_size=(12, 24), backgrounds=("noise", "texture")),
    "large": SceneSpec(size=448, object_size=(24, 192)),
}
