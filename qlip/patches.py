"""Leaves -> patches of one size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qlip.config import Geometry, check_choice
from qlip.kernels import find_loops
from qlip.quadtree import Leaves, find_grid

CHUNK = 2**17
"""Pixels of leaves that are resampled at once, so that they stay in a CPU's cache."""

SMALL_PRODUCT = 2**18
"""Multiplications up to which BLAS computes a matrix product on the calling thread."""

COMPILED_SIZES = (2, 4, 8)
"""Sides of leaves, in cells, that compiled loops resample: each is compiled separately, and larger leaves are rare."""


@dataclass(frozen=True, eq=False)
class CutImage:
    """An image as a tower takes it: its leaves and their pixels."""

    leaves: Leaves
    """N leaves."""

    patches: Tensor
    """float (N, C, P, P), from `extract_patches`."""

    thumbnail: Tensor | None = None
    """float (C, S, S): the image at the tower's native size, if the settings ask for it."""

    def to(self, device: torch.device | str) -> CutImage:
        """Copies to a device: patches and thumbnail; the leaves stay on the CPU."""
        small = None if self.thumbnail is None else self.thumbnail.to(device)
        return CutImage(self.leaves, self.patches.to(device), small)


def check_cuts(cuts: Sequence[CutImage], thumbnail: bool, channels: int) -> None:
    """Raises ValueError if there is no image, or one has other channels or lacks a thumbnail that it needs."""
    if not cuts:
        raise ValueError("there is no image; give at least one")
    if wrong := next((cut.patches.shape[1] for cut in cuts if cut.patches.shape[1] != channels), None):
        raise ValueError(f"an image has {wrong} channels; the model takes {channels}")
    if thumbnail and (missing := [number for number, cut in enumerate(cuts) if cut.thumbnail is None]):
        raise ValueError(f"image {missing[0]} has no thumbnail, but the settings ask for one (thumbnail)")


def extract_patches(image: Tensor, leaves: Leaves, patch_size: int = 14, geometry: Geometry = "grid") -> Tensor:
    """Resamples every leaf to one patch.

    Args:
        image: float (C, H, W), normalised.
        leaves: N leaves of that image.
        patch_size: P, pixels per side.
        geometry: "grid" resamples every leaf's own pixels, antialiased bilinear, `align_corners=False` (paper section
            3.1); "native" cuts aligned leaves from the whole image resized to their level, antialiased bicubic, as
            CLIP's processor resizes, and others as "grid" does. From the original image, `ImageCutter.prepare` does
            that without resizing twice.

    Returns:
        (N, C, P, P), dtype and device of `image`; leaves of one cell are copied unchanged.

    Raises:
        ValueError: the image's grid is not the leaves' grid, or a geometry of that name does not exist.
    """
    check_choice("geometry", geometry, Geometry)
    check_grid(image, leaves, patch_size)
    _check_inside(image, leaves.boxes[:, :2].numpy(), leaves.boxes[:, 2:].numpy(), patch_size)
    if geometry == "native":
        return extract_native(partial(_cut_level, image, patch_size), image, leaves, patch_size)
    if _is_array(image):
        return torch.from_numpy(_extract_arrays(image.detach().numpy(), leaves.boxes.numpy(), patch_size))
    patches = image.new_empty(len(leaves), len(image), patch_size, patch_size)
    for size in leaves.sizes.unique().tolist():
        chosen = (leaves.sizes == size).nonzero()[:, 0]
        pixels = _pixels(image, leaves.boxes[chosen], patch_size)
        if size > 1:
            out = (patch_size, patch_size)
            pixels = pixels.float()  # CPUs do not support half here
            pixels = F.interpolate(pixels, out, mode="bilinear", antialias=True)
        patches[chosen.to(image.device)] = pixels.to(image.dtype)
    return patches


def check_grid(image: Tensor, leaves: Leaves, patch_size: int) -> None:
    """Raises ValueError unless an image (C, H, W) has the leaves' grid."""
    if (grid := find_grid(image, patch_size)) != tuple(leaves.grid):
        raise ValueError(f"the image has a grid of {grid} cells, its leaves one of {tuple(leaves.grid)}")


def extract_native(cut: Callable[[int, Tensor], Tensor], image: Tensor, leaves: Leaves, patch_size: int) -> Tensor:
    """Cuts aligned leaves by levels, see `patches_of_levels`, and others as geometry "grid" does: (N, C, P, P)."""
    aligned = leaves.aligned
    if bool(aligned.all()):
        return patches_of_levels(cut, leaves)
    others = extract_patches(image, Leaves(leaves.boxes[~aligned], leaves.grid), patch_size)
    patches = others.new_empty(len(leaves), *others.shape[1:])
    patches[~aligned.to(patches.device)] = others
    if bool(aligned.any()):
        of_levels = patches_of_levels(cut, Leaves(leaves.boxes[aligned], leaves.grid))
        patches[aligned.to(patches.device)] = of_levels.to(patches.dtype)
    return patches


def patches_of_levels(cut: Callable[[int, Tensor], Tensor], leaves: Leaves) -> Tensor:
    """Cuts every leaf from the image resized so that the leaf is one cell.

    Args:
        cut: from the side of leaves in cells, a power of two, and their places in that raster, int64 (n, 2) of row and
            column, in raster order, to their pixels (n, C, P, P); called once for each side.
        leaves: N leaves, each at a multiple of its size.

    Returns:
        (N, C, P, P).
    """
    parts = []
    for size in leaves.sizes.unique().tolist():
        chosen = leaves.sizes == size
        parts.append((chosen.nonzero()[:, 0], cut(size, leaves.boxes[chosen, :2] // size)))
    first = parts[0][1]
    patches = first.new_empty(len(leaves), *first.shape[1:])
    for own, pixels in parts:
        if _is_array(pixels):
            patches.numpy()[own.numpy()] = pixels.numpy()
        else:
            patches[own.to(pixels.device)] = pixels
    return patches


def cut_cells(image: Tensor, places: Tensor, patch_size: int) -> Tensor:
    """Copies single cells at (row, col), int64 (n, 2), of an image (C, H, W) of whole cells: (n, C, P, P)."""
    _check_inside(image, places.numpy(), 1, patch_size)
    if _is_array(image):
        return torch.from_numpy(_copy_cells(image.detach().numpy(), places.numpy(), patch_size))
    return _pixels(image, F.pad(places, (0, 1), value=1), patch_size)


def _is_array(image: Tensor) -> bool:
    """Whether numpy can cut an image out: float32 on the CPU, and no gradient flows into it."""
    wants_gradient = image.requires_grad and torch.is_grad_enabled()
    return image.device.type == "cpu" and image.dtype == torch.float32 and not wants_gradient


def _extract_arrays(image: np.ndarray, boxes: np.ndarray, patch_size: int) -> np.ndarray:
    """Resamples leaves with geometry "grid", on this thread: float32 (C, H, W), int64 (N, 3) -> (N, C, P, P)."""
    single, loops = boxes[:, 2] == 1, find_loops(image)
    if 2 * np.count_nonzero(single) > len(boxes):
        patches = _copy_cells(image, boxes, patch_size)  # larger ones are overwritten below; faster than indexing
    else:
        patches = np.empty((len(boxes), len(image), patch_size, patch_size), np.float32)
        patches[single] = _copy_cells(image, boxes[single], patch_size)
    for size in np.unique(boxes[~single, 2]).tolist():
        chosen, side = np.flatnonzero(boxes[:, 2] == size), size * patch_size
        if loops and size in COMPILED_SIZES:
            weights = antialias_weights(size, patch_size)
            loops.resample(np.ascontiguousarray(image), boxes, chosen, size, weights, patches)
            continue
        column, first = np.divmod(boxes[chosen, 1], size)
        is_most = 2 * len(chosen) * side**2 > image[0].size and (first == first[0]).all()
        if is_most and side**2 * patch_size <= SMALL_PRODUCT:
            rows, starts = np.unique(boxes[chosen, 0], return_index=True)
            for row, start, end in zip(rows, starts, [*starts[1:], len(chosen)], strict=True):
                band = image[:, row * patch_size :, first[0] * patch_size :]
                patches[chosen[start:end]] = _resample_band(band, size, patch_size)[column[start:end]]
            continue
        windows, weights = _windows(image, side, patch_size), antialias_weights(size, patch_size)
        count = max(1, CHUNK // (len(image) * side**2))
        for start in range(0, len(chosen), count):
            part = chosen[start : start + count]
            patches[part] = _resample(windows[boxes[part, 0], boxes[part, 1]], weights)
    return patches


def _resample_band(band: np.ndarray, size: int, patch_size: int) -> np.ndarray:
    """Resamples all leaves of one size along the top of pixels (C, H, W), which are read in place: (n, C, P, P)."""
    channels, side, weights = len(band), size * patch_size, antialias_weights(size, patch_size)
    patches = np.empty((band.shape[2] // side, channels, patch_size, patch_size), np.float32)
    step = SMALL_PRODUCT // (side**2 * patch_size)
    for start in range(0, len(patches), step):
        count = min(step, len(patches) - start)
        down = np.matmul(weights, band[:, :side, start * side : (start + count) * side])  # (C, P, n side)
        across = np.matmul(down.reshape(channels, patch_size * count, side), weights.T)
        leaves = across.reshape(channels, patch_size, count, patch_size).transpose(2, 0, 1, 3)
        patches[start : start + count] = leaves
    return patches


def _resample(pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Resamples squares along both sides by weights (P, S): (n, C, S, S) -> (n, C, P, P)."""
    (patch_size, side), (count, channels) = weights.shape, pixels.shape[:2]
    step = max(1, SMALL_PRODUCT // (patch_size * side))
    parts = (np.matmul(weights, pixels[..., left : left + step]) for left in range(0, side, step))
    down = np.concatenate(list(parts), axis=-1)  # (n, C, P, S)
    across = np.matmul(down.reshape(count, channels * patch_size, side), weights.T)
    return across.reshape(count, channels, patch_size, patch_size)


def _copy_cells(image: np.ndarray, places: np.ndarray, patch_size: int) -> np.ndarray:
    """Copies cells at (row, col, ...), (n, 2 or more), inside (C, H, W): (n, C, P, P); faster than from `_windows`."""
    channels, height, width = image.shape
    cols = width // patch_size
    strips = image.reshape(-1, patch_size)  # one line of pixels of one cell each
    lines = np.arange(channels)[:, None] * (height * cols) + np.arange(patch_size) * cols
    corners = places[:, 0] * (patch_size * cols) + places[:, 1]
    return np.take(strips, corners[:, None, None] + lines, axis=0)


def _check_inside(image: np.ndarray | Tensor, corners: np.ndarray, sizes: np.ndarray | int, patch_size: int) -> None:
    """Raises ValueError if a leaf, its corner (n, 2) and side (n, 1) in cells, is not wholly inside (C, H, W)."""
    grid = np.array([image.shape[1] // patch_size, image.shape[2] // patch_size])
    if (corners < 0).any() or np.any(sizes < 1) or (corners > grid - sizes).any():  # `corners + sizes` could overflow
        raise ValueError(f"a leaf lies outside of the image's {grid[0]} x {grid[1]} cells")


def _windows(image: np.ndarray, side: int, patch_size: int) -> np.ndarray:
    """Views every square of `side` pixels that starts at a cell: (C, H, W) -> (rows, cols, C, side, side)."""
    squares = np.lib.stride_tricks.sliding_window_view(image, (side, side), axis=(1, 2))
    return squares[:, ::patch_size, ::patch_size].transpose(1, 2, 0, 3, 4)


@lru_cache(maxsize=64)
def antialias_weights(size: int, patch_size: int) -> np.ndarray:
    """Computes the weights of antialiased bilinear resampling along one side: float32 (P, size P), rows of sum 1.

    A triangle around each sample's centre that reaches as far as its neighbours' centres, cut off at the leaf's edge.
    """
    centres = (np.arange(patch_size) + 0.5) * size
    distance = np.abs(np.arange(size * patch_size) + 0.5 - centres[:, None]) / size
    weights = np.maximum(1 - distance, 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _cut_level(image: Tensor, patch_size: int, size: int, places: Tensor) -> Tensor:
    """Cuts blocks of `size` cells from an image (C, H, W) resized so that each is a cell; see `patches_of_levels`."""
    return cut_cells(image if size == 1 else _resize_level(image, size, patch_size), places, patch_size)


def _resize_level(image: Tensor, size: int, patch_size: int) -> Tensor:
    """Resizes the blocks of `size` cells of an image (C, H, W) to cells: antialiased bicubic.

    Blocks that stick out are filled up by the image's border, so that whole ones see what lies beside them.
    """
    side = size * patch_size
    below, right = -image.shape[1] % side, -image.shape[2] % side
    filled = F.pad(image[None].float(), (0, right, 0, below), mode="replicate")
    out = (filled.shape[2] // size, filled.shape[3] // size)
    return F.interpolate(filled, out, mode="bicubic", antialias=True)[0].to(image.dtype)


def downsize(image: Tensor, side: int) -> Tensor:
    """Resizes a whole image (C, H, W) to (C, side, side): antialiased bicubic, float32."""
    return F.interpolate(image.float()[None], (side, side), mode="bicubic", antialias=True)[0]


def native_cut(image: Tensor, patch_size: int = 14) -> CutImage:
    """Cuts an image (C, S, S) of the native size into the uniform grid, as CLIP does."""
    side = image.shape[1] // patch_size
    leaves = Leaves.uniform((side, side))
    return CutImage(leaves, extract_patches(image, leaves, patch_size))


def _pixels(image: Tensor, boxes: Tensor, patch_size: int) -> Tensor:
    """Selects the pixels (n, C, size P, size P) of n leaves of one size."""
    side = int(boxes[0, 2]) * patch_size
    # A view of every position that a leaf can have.
    squares = image.unfold(1, side, patch_size).unfold(2, side, patch_size)
    row, col, _ = boxes.to(image.device).unbind(1)
    return squares[:, row, col].transpose(0, 1)
