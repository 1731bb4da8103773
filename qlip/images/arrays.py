"""Images given as arrays, tensors or lists: lists of single images, and Pillow images made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

CHANNELS = (1, 3, 4)


def list_images(images: Any) -> Sequence[Any]:
    """Lists one image, a sequence of images, or an array or a tensor of several (B, ...).

    Raises:
        ValueError: there is none.
    """
    is_batch = isinstance(images, Sequence) and not isinstance(images, str | bytes)
    is_batch |= isinstance(images, np.ndarray | Tensor) and images.ndim == 4
    batch = list(images) if is_batch else [images]
    if not batch:
        raise ValueError("there is no image; give at least one")
    return batch


def flatten_images(images: Any) -> list[Any]:
    """Lists the images of several prompts, in lists of any depth; see `list_images`. There may be none."""
    if isinstance(images, list | tuple):
        return [image for part in images for image in flatten_images(part)]
    return list(list_images(images))


def to_pillow(image: Any) -> Image.Image:
    """Converts an array or a tensor to a Pillow image; returns Pillow images unchanged.

    Args:
        image: see `QLIPImageProcessor.preprocess`.

    Raises:
        TypeError: the image is none of these.
        ValueError: floats outside of [0, 1], or an array of another shape.
    """
    image = _as_array(image)
    if isinstance(image, np.ndarray) and (image.dtype == np.uint8 or not image.size):
        if not image.size or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,), (4,)):
            raise ValueError(
                f"the image is an array of {image.shape}; it must be (H, W), or with 1, 3 or 4 channels; not empty"
            )
        image = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    if not isinstance(image, Image.Image):
        kind = f"{image.dtype} array" if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"the image is a {kind}; it must be a Pillow image, or uint8 or floats in [0, 1]")
    return image


def _as_array(image: Any) -> Any:
    """Converts a tensor or an array to a uint8 array with the channels last; returns others unchanged.

    Raises:
        ValueError: floats outside of [0, 1].
    """
    if is_tensor := isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if not isinstance(image, np.ndarray):
        return image
    if image.ndim == 3 and image.shape[0] in CHANNELS and (is_tensor or image.shape[2] not in CHANNELS):
        image = image.transpose(1, 2, 0)
    if np.issubdtype(image.dtype, np.floating) and image.size:
        low, high = image.min(), image.max()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"the image holds floats from {low} to {high}; allowed are 0 to 1, and uint8")
        image = (image.astype(np.float32) * 255).round().astype(np.uint8)
    return image
