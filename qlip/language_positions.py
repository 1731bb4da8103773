"""Positions and attention weights of text and image tokens in a language model. Pure functions.

An image takes `length` positions; each of its tokens has one among these, and the next text token comes
`length` after the image's start (docs/METHOD.md, "Positions in the language model").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qlip.config import QLIPConfig
from qlip.positions import raster_positions
from qlip.quadtree import Leaves, measure_sizes
from qlip.roots import find_native_cell

BIASABLE = ("sdpa", "eager")
"""transformers' attentions that take an additive mask."""


CPU: Any = {"dtype": torch.float32, "device": "cpu"}
"""Where and how positions and weights are computed, whatever PyTorch's defaults are."""


@dataclass(frozen=True)
class ImageSpan:
    """Positions and weights of one image's tokens."""

    count: int
    """Tokens."""

    positions: Tensor | None
    """float (count,): relative to the image's start; None counts 0, 1, 2, ..."""

    length: int
    """Positions that the image takes: the next token's, relative to the image's start."""

    sizes: Tensor | None
    """float (count,): a token weighs size^2 in attention; None where each token weighs 1."""

    @classmethod
    def sequential(cls, count: int) -> ImageSpan:
        """Builds the span of tokens that count as text does."""
        return cls(count, None, count, None)

    @property
    def context(self) -> int:
        """How much of the context window the image takes: the larger of its token and position counts."""
        return max(self.count, self.length)

    def select(self, keep: Tensor) -> ImageSpan:
        """Leaves tokens out; the others keep their positions and weights, and the image its length.

        Args:
            keep: bool (count,).

        Raises:
            ValueError: all are left out.
        """
        if not keep.any():
            raise ValueError(f"all {self.count} tokens of the image are left out; at least one must stay")
        positions = torch.arange(self.count, device=keep.device) if self.positions is None else self.positions
        own = keep.to(positions.device)
        sizes = None if self.sizes is None else self.sizes[keep.to(self.sizes.device)]
        return ImageSpan(int(own.sum()), positions[own], self.length, sizes)

    @staticmethod
    def join(parts: Sequence[ImageSpan]) -> ImageSpan:
        """Joins the spans of an image's parts (tiles), one after the other."""
        positions, sizes, start = [], [], 0
        for part in parts:
            own = torch.arange(part.count, **CPU) if part.positions is None else part.positions
            positions.append(own + start)
            sizes.append(torch.ones(part.count, **CPU) if part.sizes is None else part.sizes)
            start += part.length
        counted = all(part.positions is None for part in parts)
        sized = any(part.sizes is not None for part in parts)
        return ImageSpan(
            sum(part.count for part in parts),
            None if counted else torch.cat(positions),
            start,
            torch.cat(sizes) if sized else None,
        )


def image_span(settings: QLIPConfig, leaves: Leaves, native_grid: int) -> ImageSpan:
    """Computes the positions and weights of an image's tokens, its thumbnail's first where there is one.

    Args:
        settings: `llm_positions`, `placement`, `llm_size_bias`, `llm_weight`, `geometry` and `thumbnail` decide.
        leaves: of the image.
        native_grid: n, cells per side of the grid that the tower was trained on.
    """
    count = len(leaves) + (native_grid**2 if settings.thumbnail else 0)
    positions = _raster_positions(settings, leaves, native_grid)
    length = count if positions is None else native_grid**2
    return ImageSpan(count, positions, length, _token_sizes(settings, leaves, native_grid))


def _raster_positions(settings: QLIPConfig, leaves: Leaves, native_grid: int) -> Tensor | None:
    """Computes float32 (M,): an image's tokens on the native raster; None where positions are sequential."""
    if settings.llm_positions == "sequential":
        return None
    positions = raster_positions(leaves, native_grid, settings.placement)
    if settings.thumbnail:
        positions = torch.cat([torch.arange(native_grid**2, **CPU), positions])
    return positions


def _token_sizes(settings: QLIPConfig, leaves: Leaves, native_grid: int) -> Tensor | None:
    """Computes float32 (M,): side of the square of cells that each token counts as in the language model's attention.

    Twice its logarithm is added to the token's attention logits: s * log(size^2) for `llm_size_bias` s, and one number
    for all where `llm_weight` is "native". None where every token weighs one.
    """
    if not settings.biases_language_model:
        return None
    sizes = measure_sizes(leaves, native_grid, settings.geometry)
    if settings.thumbnail:
        covered = (leaves.grid[0] * leaves.grid[1]) ** 0.5 / native_grid
        covered /= find_native_cell(leaves.grid, native_grid, settings.geometry)
        sizes = torch.cat([torch.full((native_grid**2,), covered, **CPU), sizes])
    return weigh(settings, sizes, native_grid**2)


def weigh(settings: QLIPConfig, sizes: Tensor, trained: int) -> Tensor | None:
    """Computes the weighted sides of tokens from their sides, float (M,); None where each token weighs one.

    Args:
        settings: `llm_size_bias` and `llm_weight` decide.
        sizes: of all tokens of an image.
        trained: number of tokens per image in training; llm_weight "native" makes the image weigh as much in total.
    """
    sizes = sizes**settings.llm_size_bias
    if settings.llm_weight == "native":
        sizes = sizes * (trained**0.5 / sizes.square().sum().sqrt())
    return None if (sizes == 1).all() else sizes


@dataclass(frozen=True)
class Placed:
    """Positions and weights of one prompt of T tokens, or of B of them."""

    positions: Tensor
    """(T,) or (B, T): int64, or float32 where an image's are fractional; 0 on padding."""

    sizes: Tensor
    """float32, shaped like `positions`: 1 on text and padding."""

    end: Tensor
    """int64 () or (B,): position of the next token after the prompt."""


def place_tokens(is_image: Tensor, images: Sequence[ImageSpan]) -> Placed:
    """Computes the positions and weights of one prompt.

    Args:
        is_image: bool (T,), True on tokens of images; those of one image are adjacent.
        images: in the order of their tokens.

    Raises:
        ValueError: another number of image tokens than the images have, or an image's tokens with text between them.
    """
    device = is_image.device
    where = is_image.nonzero()[:, 0].tolist()
    if len(where) != (count := sum(image.count for image in images)):
        raise ValueError(
            f"the prompt holds {len(where)} image tokens, and its images ({len(images)}) have {count}; prepare both by"
            " the processor that qlip.attach returned"
        )
    fractional = any(image.positions is not None and image.positions.is_floating_point() for image in images)
    # First as if every image took as many positions as it has tokens.
    positions = torch.arange(len(is_image), dtype=torch.float32 if fractional else torch.int64, device=device)
    sizes, end, done = torch.ones(len(is_image), dtype=torch.float32, device=device), len(is_image), 0
    for image in images:
        first, after = where[done], where[done] + image.count
        if where[(done := done + image.count) - 1] != after - 1:
            raise ValueError("there is text between the tokens of one image")
        if image.positions is not None:
            positions[first:after] = positions[first] + image.positions.to(device)
        if image.sizes is not None:
            sizes[first:after] = image.sizes.to(device)
        if more := image.length - image.count:
            positions[after:] += more
            end += more
    return Placed(positions, sizes, torch.tensor(end, device=device))


def place_batch(is_image: Tensor, real: Tensor, images: Sequence[ImageSpan]) -> Placed:
    """Computes the positions and weights of a padded batch of prompts.

    Args:
        is_image: bool (B, T), True on tokens of images.
        real: bool (B, T), False on padding, whichever side it is on.
        images: in order over the whole batch.

    Raises:
        ValueError: image tokens and images do not match.
    """
    left, device = list(images), real.device
    rows = []
    is_image, real = is_image.cpu(), real.cpu()  # reading a GPU's values would synchronize for every row
    for flags, keep in zip(is_image, real, strict=True):
        flags, own, found = flags[keep], [], 0
        while left and found < int(flags.sum()):
            own.append(left.pop(0))
            found += own[-1].count
        rows.append(place_tokens(flags, own))
    if left:
        raise ValueError(f"{len(images)} images were given, {len(left)} more than the prompts have tokens for")
    fractional = any(row.positions.is_floating_point() for row in rows)
    positions = torch.zeros(real.shape, dtype=torch.float32 if fractional else torch.int64, device="cpu")
    sizes = torch.ones(real.shape, **CPU)
    for index, row in enumerate(rows):
        positions[index, real[index]] = row.positions.to(positions.dtype)
        sizes[index, real[index]] = row.sizes
    return Placed(positions.to(device), sizes.to(device), torch.stack([row.end for row in rows]).to(device))


def key_bias(sizes: Tensor, attention: str = "sdpa") -> Tensor | None:
    """Computes log(size^2), shaped like `sizes`, to add to the attention logits of a key; None where all are 1.

    Args:
        sizes: float (B, T), see `Placed`.
        attention: transformers' name of the language model's attention.

    Raises:
        ValueError: there is a bias, and the attention can't apply it.
    """
    if (sizes == 1).all():
        return None
    if attention not in BIASABLE:
        raise ValueError(
            f"llm_size_bias and llm_weight need an attention bias, which {attention!r} can't apply; load the model with"
            " attn_implementation 'sdpa' or 'eager', or set them to 0 and 'each'"
        )
    return 2 * sizes.log()
