"""The objects and signs of scenes: their colours, shapes, texts and places. Imports nothing."""

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
"""Kinds of generated background, from plain to busy."""
GROUNDS = (*BACKGROUNDS, "photo")
"""All kinds of background; `photo` is a crop of a photograph."""
Size = tuple[int, int]
"""(height, width) in pixels."""


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


@dataclass(frozen=True)
class Sign:
    """A plate with a text; `centre` is (row, col) and `box` (height, width) that of the plate, all in pixels."""

    text: str
    """What is written: one to three digits, or a word in lower case, which is drawn in capitals."""
    centre: tuple[float, float]
    box: tuple[int, int]
    height: int
    """Height of the capitals."""
    readable: bool = True
    """False if the capitals are too low to be read at the size of the picture."""
    edges: tuple[float, ...] = ()
    """Columns between the characters, the outer edges included, counted from the plate's left edge."""


def height_and_width(size: int | Size) -> Size:
    """Finds the (height, width) of a picture given by its side, if it is a square, or by both."""
    return (size, size) if isinstance(size, int) else size
