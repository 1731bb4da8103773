"""Draws antialiased shapes and generated backgrounds in float images.

Images are float32 `(height, width, 3)` in 0..255.
"""

from __future__ import annotations

import numpy as np

from playground.objects import BACKGROUNDS, SHAPES, Size, height_and_width


def background(kind: str, size: int | Size, rng: np.random.Generator) -> np.ndarray:
    """Draws a background of one of `BACKGROUNDS`.

    Args:
        kind: one of `BACKGROUNDS`.
        size: side of a square in pixels, or (height, width).
        rng: the generator of its choices.

    Raises:
        ValueError: if `kind` is not a known background.
    """
    size = height_and_width(size)
    base = rng.uniform(60, 215) + rng.uniform(-22, 22, 3)
    if kind == "flat":
        return _flat(base, size)
    if kind == "gradient":
        return _gradient(base, size, rng)
    if kind == "low":
        return _low_frequency(base, size, rng)
    if kind in ("noise", "texture"):
        smooth = _gradient(base, size, rng) if rng.random() < 0.5 else _flat(base, size)
        return smooth + (_noise(size, rng) if kind == "noise" else _texture(size, rng))
    raise ValueError(f"unknown background {kind!r}; allowed: {', '.join(BACKGROUNDS)}")


def _flat(base: np.ndarray, size: Size) -> np.ndarray:
    return np.broadcast_to(base.astype(np.float32), (*size, 3)).copy()


def _gradient(base: np.ndarray, size: Size, rng: np.random.Generator) -> np.ndarray:
    """Draws a linear blend of two colours along a random direction."""
    other = np.clip(base + rng.uniform(-60, 60) + rng.uniform(-20, 20, 3), 40, 235)
    angle = rng.uniform(0, 2 * np.pi)
    rows, cols = (np.arange(side, dtype=np.float32) / side - 0.5 for side in size)
    weight = np.clip(0.5 + np.sin(angle) * rows[:, None] + np.cos(angle) * cols, 0, 1)
    return (base + (other - base) * weight[..., None]).astype(np.float32)


def _low_frequency(base: np.ndarray, size: Size, rng: np.random.Generator) -> np.ndarray:
    """Draws a 4x4 field of colours, interpolated bilinearly."""
    knots = base + rng.uniform(-35, 35, (4, 4, 1)) + rng.uniform(-15, 15, (4, 4, 3))
    rows, cols = (  # hat functions: (height, 4) and (width, 4)
        np.maximum(0, 1 - np.abs(np.linspace(0, 3, side)[:, None] - np.arange(4))).astype(np.float32) for side in size
    )
    return np.einsum("ri,cj,ijk->rck", rows, cols, knots.astype(np.float32), optimize=True)


def _noise(size: Size, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((*size, 1), dtype=np.float32) * np.float32(rng.uniform(2, 8))


def _texture(size: Size, rng: np.random.Generator) -> np.ndarray:
    """Draws stripes or, half of the time, a weave of two stripe patterns."""
    wavelength, angle, amplitude = rng.uniform(5, 24), rng.uniform(0, np.pi), rng.uniform(4, 14)
    down, across = (np.arange(side, dtype=np.float32) * (2 * np.pi / wavelength) for side in size)
    rows, cols = down[:, None], across[None]
    waves = np.sin(np.cos(angle) * cols + np.sin(angle) * rows)
    if rng.random() < 0.5:
        waves = waves + np.sin(np.cos(angle) * rows - np.sin(angle) * cols)
    return (amplitude * waves)[..., None].astype(np.float32)


def coverage(
    shape: str, centre: tuple[float, float], size: float, canvas: int | Size
) -> tuple[slice, slice, np.ndarray]:
    """Computes how much of each pixel a shape covers.

    Args:
        shape: one of `SHAPES`.
        centre: (row, col) in pixels.
        size: side of the shape's bounding box in pixels.
        canvas: side of the image in pixels, if it is a square, or (height, width).

    Returns:
        The rows and columns of a box around the shape, and its float32 coverage (0..1) inside that box.
    """
    radius = size / 2
    (top, bottom), (left, right) = (
        (max(0, int(c - radius - 2)), min(side, int(c + radius + 3)))
        for c, side in zip(centre, height_and_width(canvas), strict=True)
    )
    row = (np.arange(top, bottom, dtype=np.float32) + 0.5 - centre[0])[:, None]
    col = (np.arange(left, right, dtype=np.float32) + 0.5 - centre[1])[None]
    distance = _signed_distance(shape, row, col, radius)
    return slice(top, bottom), slice(left, right), np.clip(0.5 - distance, 0, 1).astype(np.float32)


def _signed_distance(shape: str, row: np.ndarray, col: np.ndarray, radius: float) -> np.ndarray:
    """Computes the distance in pixels to the shape's outline, negative inside."""
    height, width = np.abs(row), np.abs(col)
    if shape == "square":
        return np.maximum(height, width) - 0.92 * radius
    if shape == "circle":
        return np.hypot(row, col) - radius
    if shape == "triangle":
        slanted = (width - (row + radius) / 2) / np.hypot(1, 0.5)
        return np.maximum(slanted, row - radius)
    if shape == "cross":
        arm = 0.34 * radius
        upright = np.maximum(height - radius, width - arm)
        return np.minimum(upright, np.maximum(width - radius, height - arm))
    if shape == "ring":
        return np.abs(np.hypot(row, col) - 0.72 * radius) - 0.28 * radius
    raise ValueError(f"unknown shape {shape!r}; allowed: {', '.join(SHAPES)}")
