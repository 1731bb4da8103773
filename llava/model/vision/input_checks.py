"""Checks of the prompts and images that callers give a model, before anything is computed.

Only types and shapes: reading a GPU's values would synchronize with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from llava.model.vision.image_tokens import ImageTokens
from qlip.patches import CutImage


def check_prompts(input_ids: Any, attention_mask: Any = None, labels: Any = None, images: Any = None) -> None:
    """Checks a batch of prompts and what belongs to it.

    Args:
        input_ids: int64 (B, L).
        attention_mask: (B, L) or None.
        labels: int64 (B, L) or None.
        images: see `check_images`.

    Raises:
        TypeError: one is no tensor, `input_ids` are no integers, or `images` holds something else than images.
        ValueError: one has another shape.
    """
    check_ids(input_ids)
    for name, value in (("attention_mask", attention_mask), ("labels", labels)):
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; it must be a tensor")
        if value.shape != input_ids.shape:
            raise ValueError(
                f"{name} has the shape {tuple(value.shape)}; it must be that of input_ids, {tuple(input_ids.shape)}:"
                " an image counts as the one token of its <image>"
            )
    check_images(images)


def check_ids(input_ids: Any) -> None:
    """Checks that token ids are those of a batch of prompts, int64 (B, L); raises like `check_prompts`."""
    if not isinstance(input_ids, Tensor):
        way = "give its input_ids" if isinstance(input_ids, Mapping) or hasattr(input_ids, "input_ids") else ""
        way = way or "for a list of one prompt's ids, torch.tensor([ids])"
        raise TypeError(f"input_ids is a {type(input_ids).__name__}; it must be a tensor (prompts, tokens): {way}")
    if input_ids.is_floating_point():
        raise TypeError(f"input_ids is {input_ids.dtype}; it must be int64")
    if input_ids.ndim != 2:
        way = ": for one prompt, input_ids[None]" if input_ids.ndim == 1 else ""
        raise ValueError(f"input_ids has the shape {tuple(input_ids.shape)}; it must be (prompts, tokens){way}")


def check_tokens(rows: Sequence[Tensor]) -> None:
    """Checks that a batch of prompts, without what its mask hides, has a token.

    Raises:
        ValueError: it has none.
    """
    if not any(map(len, rows)):
        raise ValueError("the prompt is empty: input_ids holds no token, or attention_mask hides all of them")


def check_images(images: Any) -> None:
    """Checks that images are prepared: a tensor of all, or a sequence of tensors, cut images or `encode_tokens`'s.

    Raises:
        TypeError: they are not.
        ValueError: a tensor has another number of axes.
    """
    way = "; images must be prepared: process_images([image], image_processor, model.config)"
    if isinstance(images, Tensor):
        if images.ndim not in (4, 5):
            one = ": for one image, images[None]" if images.ndim == 3 else ""
            raise ValueError(
                f"images has the shape {tuple(images.shape)}; it must be (images, channels, height, width), or (images,"
                f" tiles, channels, height, width){one}"
            )
        return
    if images is None:
        return
    if not isinstance(images, Sequence) or isinstance(images, str | bytes):
        raise TypeError(f"images is a {type(images).__name__}; it must be a tensor or a list{way}")
    for number, image in enumerate(images):
        if not isinstance(image, Tensor | ImageTokens | CutImage | tuple):
            raise TypeError(f"images[{number}] is a {type(image).__name__}{way}")
        if isinstance(image, Tensor) and image.ndim not in (3, 4):
            raise ValueError(
                f"images[{number}] has the shape {tuple(image.shape)}; it must be (channels, height, width), or (tiles,"
                " channels, height, width)"
            )
