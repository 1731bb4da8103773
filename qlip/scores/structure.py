"""Scores by what is too fine for a block's sampling: top-hats and bottom-hats (criteria "structure" and "objects").

The image is halved level by level; opening and closing run along flat memory, rows end to end, so that each step is one
operation over all of it. What a window then reads beyond the end of a row is cut off with the padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from torch import Tensor

from qlip.kernels import find_loops
from qlip.scores.arrays import Array, cell_max, empty, in_cells, largest, namespace, quarters
from qlip.scores.reconstruction import ROUNDS, reconstruct

NOISE_HEIGHT = 5.0
"""Standard deviations of noise that a hat over one block reaches by chance alone."""

MAX_NOISE = 0.17
"""Most noise that the cells of a split may show, in normalised units: about 12 of 255 in CLIP's."""

COMPILED_WINDOW = 31
"""Largest window of compiled loops, which read each of its pixels; numpy's doubling wins beyond."""

HAT_BAND = 2**17
"""Pixels halved or opened at once on a CPU, so that intermediate results stay in its cache."""


def structure_scores(
    image: Array, patch_size: int, levels: int, size: int, noise: Array | None = None, *, objects: bool = False
) -> list[Array]:
    """Computes the largest top-hat or bottom-hat of a block sampled to P x P, by level from 1; at least its children's.

    Without `objects`, a block scores high if and only if, at its own sampling, it holds structure narrower than `size`
    pixels in some direction: large objects keep large leaves, small ones get small leaves. Opening and closing see the
    pooled image extended by its border pixels.

    With `objects`, which needs a numpy array, what opening and closing keep is first grown back along the object that
    it is a part of (`qlip.scores.reconstruction`): corners and thin parts of large objects do not count, only what is
    nowhere as wide as the window, or lies around a corner.

    With noise of deviation sigma in each channel, the hats at level k are lowered by NOISE_HEIGHT sigma / 2^k, what
    averaged noise reaches by itself; where the cells that a split makes would show noise of more than MAX_NOISE, the
    score is 0 (docs/METHOD.md, "Noise floor").
    """
    xp = namespace(image)
    cells = empty(image, image.shape[1] // patch_size, image.shape[2] // patch_size)
    cells[...] = 0
    scores = [cells]
    floors = [None if noise is None else noise * (NOISE_HEIGHT / 2**level) for level in range(1, levels + 1)]
    hats = _find_cell_hats(image, patch_size, size, floors, objects=objects)
    for level, own in enumerate(hats, start=1):
        if noise is not None:  # a mask, since reading the number would synchronise with the GPU
            own = xp.where(noise.max() / 2 ** (level - 1) > MAX_NOISE, xp.zeros_like(own), own)
        score = largest(*quarters(scores[-1]))
        score[: own.shape[0], : own.shape[1]] = largest(score[: own.shape[0], : own.shape[1]], own)
        scores.append(score)
    return scores[1:]


def _find_cell_hats(
    image: Array, patch_size: int, size: int, floors: Sequence[Array | None], *, objects: bool
) -> Iterable[Array]:
    """Computes the largest hat in each whole cell of the image halved once, twice, ...: (rows, cols) for each floor."""
    loops = find_loops(image) if size <= COMPILED_WINDOW else None
    if loops:
        given = [np.zeros(len(image), np.float32) if floor is None else floor for floor in floors]
        pixels = np.ascontiguousarray(image)
        if objects:
            hats = loops.find_object_hats(pixels, patch_size, size, given, ROUNDS)
        else:
            hats = loops.find_cell_hats(pixels, patch_size, size, given)
        if hats is not None:
            yield from hats
            return
    for floor in floors:
        image = halve(image)
        yield (_object_hats if objects else _cell_hats)(image, patch_size, size, floor)


def _object_hats(image: np.ndarray, patch_size: int, size: int, floor: np.ndarray | None) -> np.ndarray:
    """Computes as `_cell_hats`, with opening and closing by reconstruction."""
    rows, cols = image.shape[1] // patch_size, image.shape[2] // patch_size
    if not rows * cols:
        return empty(image, rows, cols)
    planes, opened = np.concatenate([image, -image]), _open_planes(image, size)
    kept = reconstruct(opened, planes, out=opened)

    def find_hats(first: int, last: int) -> Array:
        hats = planes[:, first:last] - kept[:, first:last]
        if floor is not None:
            hats -= np.tile(floor, 2)[:, None, None]
        return hats.max(0).clip(0)

    return _largest_in_cells(image, patch_size, find_hats)


def _open_planes(image: np.ndarray, size: int) -> np.ndarray:
    """Opens an image and its negative by flat squares: (C, H, W) -> (2 C, H, W)."""
    channels, height, width = image.shape
    opened, reach = empty(image, 2 * channels, height, width), size - 1
    step = _band_of(image, 1)
    for top in range(0, height, step):
        band = opened[:, top : top + step]
        padded = _pad(image, top - reach, top + band.shape[1] + reach, reach)
        windows, spare = _open(padded.reshape(-1), padded.shape[2], size)
        spare[: len(windows)] = windows
        band[...] = spare.reshape(padded.shape)[:, : band.shape[1], :width]
    return opened


def halve(image: Array) -> Array:
    """Averages 2 x 2 pixels, (C, H, W) -> (C, H // 2, W // 2): bitwise `avg_pool2d`, and several times as fast."""
    add, (channels, height, width) = namespace(image).add, image.shape
    halved = empty(image, channels, height // 2, width // 2)
    step = _band_of(image, 1)
    for top in range(0, height // 2, step):
        band = halved[:, top : top + step]
        rows = image[:, 2 * top : 2 * (top + band.shape[1]), : width // 2 * 2]
        upper, lower = rows[:, ::2], rows[:, 1::2]
        add(upper[..., ::2], upper[..., 1::2], out=band)
        add(band, lower[..., ::2], out=band)
        add(band, lower[..., 1::2], out=band)
        band *= 0.25
    return halved


def _band_of(image: Array, pitch: int) -> int:
    """Counts the rows, of `pitch` pixels each, that are worked on at once: on a CPU few, else all."""
    channels, height, width = image.shape
    return max(1, (height if isinstance(image, Tensor) else HAT_BAND // max(1, channels * width)) // pitch)


def _cell_hats(image: Array, patch_size: int, size: int, floor: Array | None) -> Array:
    """Computes the largest hat in each whole cell: (C, H, W) -> (rows, cols)."""
    return _largest_in_cells(image, patch_size, lambda first, last: _find_hats(image, first, last, size, floor))


def _largest_in_cells(image: Array, patch_size: int, find_hats: Callable[[int, int], Array]) -> Array:
    """Takes the largest hat in each whole cell, (rows, cols); on a CPU by bands of the image's rows.

    `find_hats` finds those of the rows from the first to before the last: (last - first, W).
    """
    rows, cols = image.shape[1] // patch_size, image.shape[2] // patch_size
    own = empty(image, rows, cols)
    step = _band_of(image, patch_size)
    for top in range(0, rows, step):
        bottom = min(rows, top + step)
        hats = find_hats(top * patch_size, bottom * patch_size)
        own[top:bottom] = cell_max(in_cells(hats[:, : cols * patch_size], patch_size))
    return own


def _find_hats(image: Array, first: int, last: int, size: int, floor: Array | None) -> Array:
    """Computes max over channels of image - opening and closing - image in some rows: (C, H, W) -> (last - first, W).

    The windows are flat squares. A closing is the opening of the negative. A floor (C,) is subtracted from each
    channel's, down to 0.
    """
    xp, reach, (channels, _, width) = namespace(image), size - 1, image.shape
    padded = _pad(image, first - reach, last + reach, reach)
    pitch, plane = width + 2 * reach, padded.shape[1] * padded.shape[2]
    pixels = padded.reshape(2 * channels * plane)
    opened, spare = _open(pixels, pitch, size)
    count, corner = len(opened), reach * (pitch + 1)
    xp.subtract(pixels[corner : corner + count], opened, out=spare[:count])
    spare[count:] = 0  # in the padding
    used = (last - first) * pitch
    planes = [spare[start : start + used] for start in range(0, len(spare), plane)]
    if floor is None:
        hats = largest(*planes)
    else:
        hats = largest(*(hat - floor[number % channels] for number, hat in enumerate(planes))).clip(0)
    return hats.reshape(last - first, pitch)[:, :width]


def _pad(image: Array, first: int, last: int, reach: int) -> Array:
    """Extends rows of an image by its border pixels, and appends the negative: (2 C, last - first, W + 2 reach)."""
    channels, height, width = image.shape
    padded = empty(image, 2 * channels, last - first, width + 2 * reach)
    start, end = max(first, 0), min(last, height)
    upright = padded[:channels]
    rows = upright[:, :, reach : reach + width]
    rows[:, start - first : end - first] = image[:, start:end]
    rows[:, : start - first] = image[:, start : start + 1]
    rows[:, end - first :] = image[:, end - 1 : end]
    upright[:, :, :reach] = rows[:, :, :1]
    upright[:, :, reach + width :] = rows[:, :, -1:]
    namespace(image).negative(upright, out=padded[channels:])
    return padded


def _open(pixels: Array, pitch: int, size: int) -> tuple[Array, Array]:
    """Opens images whose rows of `pitch` pixels follow each other, (n,); keeps complete windows, each at its corner.

    Separable, each direction by doubling the window. Also returns memory (n,) that is free again.
    """
    xp, spare = namespace(pixels), [empty(pixels, len(pixels)) for _ in range(2)]
    for extreme in (xp.minimum, xp.maximum):
        for stride in (1, pitch):
            window = 1
            while window < size:
                step = min(window, size - window)
                count = len(pixels) - step * stride
                pixels = extreme(pixels[:count], pixels[step * stride :], out=spare[0][:count])
                spare.reverse()
                window += step
    return pixels, spare[0]
