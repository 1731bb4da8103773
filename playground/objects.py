"""The objects of scenes: their colours, shapes and places. Imports nothing."""

from __future__ import annotations

from dataclasses import dataclass

COLOURS = {
    "red": (215, 35, 35),
    "green": (35, 165, 45),
    "blue": (35, 60, 215),
    "yellow": (235, 215, 40),
    "purple": (150, 40, 180),
    "cyan": (40, 200, 215),
}
SHAPES = ("square", "circle", "triangle", "cross", "ring")
BACKGROUNDS = ("flat", "gradient", "low", "noise", "texture")
"""Kinds of background, from plain to busy."""


@dataclass(frozen=True)
class SceneObject:
    """One coloured shape; `centre` is (row, col) and `size` the side of its box, all in pixels."""

    colour: str
    shape: str
    centre: tuple[float, float]
    size: float

    @property
    def name(self) -> str:
        """The words for it, such as "red circle"."""
        return f"{self.colour} {self.shape}"
