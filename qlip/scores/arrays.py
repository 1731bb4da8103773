"""Array operations that read alike for numpy on a CPU and for torch on other devices.

numpy computes on the calling thread. PyTorch splits large arrays over a pool whose threads wait for each other: on
busy cores a few milliseconds of work can take hundreds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = Any
"""A numpy array, or a tensor of a device other than the CPU."""


def as_array(tensor: Tensor) -> Array:
    """Views a tensor on the CPU as a numpy array; others stay tensors."""
    tensor = tensor.detach()
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def as_tensor(array: Array) -> Tensor:
    """Inverts `as_array`."""
    return array if isinstance(array, Tensor) else torch.from_numpy(array)


def namespace(array: Array) -> Any:
    """Finds the module of the array's functions, numpy or torch."""
    return torch if isinstance(array, Tensor) else np


def empty(like: Array, *shape: int) -> Array:
    """Makes an uninitialised array of the type and device of `like`."""
    return like.new_empty(shape) if isinstance(like, Tensor) else np.empty(shape, like.dtype)


def largest(*arrays: Array) -> Array:
    """Computes the element-wise maximum."""
    maximum = namespace(arrays[0]).maximum
    result = arrays[0]
    for array in arrays[1:]:
        result = maximum(result, array)
    return result


def quarters(grid: Array) -> tuple[Array, Array, Array, Array]:
    """Splits a grid into the four children of its blocks, in raster order: (..., r, c) -> 4 of (..., r/2, c/2).

    An odd row or column is padded with zeros.
    """
    rows, cols = grid.shape[-2:]
    if rows % 2 or cols % 2:
        padded = empty(grid, *grid.shape[:-2], rows + rows % 2, cols + cols % 2)
        padded[..., rows:, :], padded[..., cols:] = 0, 0
        padded[..., :rows, :cols] = grid
        grid = padded
    return grid[..., ::2, ::2], grid[..., ::2, 1::2], grid[..., 1::2, ::2], grid[..., 1::2, 1::2]


def in_cells(pixels: Array, patch_size: int) -> Array:
    """Views pixels (rows P, cols P) as (rows, P, cols, P)."""
    height, width = pixels.shape
    return pixels.reshape(height // patch_size, patch_size, width // patch_size, patch_size)


def cell_max(pixels: Array) -> Array:
    """Computes each cell's maximum: (rows, P, cols, P) -> (rows, cols)."""
    amax = namespace(pixels).amax
    return amax(amax(pixels, 1), 2)  # row by row first: twice as fast as both at once
