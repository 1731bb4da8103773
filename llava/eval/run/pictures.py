"""Pictures made ready ahead of the model, in worker processes: opened, resized, and cut by the quadtree.

What comes out is small: patches of leaves, not pixels. Knows image processors, neither towers nor questions.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from llava.images import ImageError, ImageLimits, load_image
from llava.mm_utils import process_images
from llava.model.multimodal_encoder.base import VisionTower
from llava.serve.engine.vision import quadtree_view
from qlip import Leaves, QLIPImageProcessor
from qlip.patches import CutImage

Source = str | Path

LOCAL_LIMITS = ImageLimits(max_bytes=512 * 2**20, max_pixels=500_000_000, max_side=32_768)
"""What a picture that the user of a command named may cost; the defaults are for pictures that strangers send."""


@dataclass(frozen=True)
class Prepared:
    """A picture as the model takes it, and what it will cost."""

    image: CutImage | Tensor
    """What `encode_tokens` takes."""
    tokens: int
    """Visual tokens."""
    span: int
    """Positions that it takes in the language model."""
    uniform_tokens: int
    """Tokens of the uniform grid at the same size."""
    size: tuple[int, int]
    """(height, width) in pixels, as the tower gets it."""


@dataclass(frozen=True)
class Unreadable:
    """A picture that could not be had."""

    reason: str
    """For a user's eyes."""


@dataclass(frozen=True)
class Preparer:
    """Source -> `Prepared`, without the model; can be sent to other processes."""

    processor: Any
    """A `QLIPImageProcessor`, or a CLIP or SigLIP image processor."""
    aspect_ratio: str | None
    """The model's `image_aspect_ratio`."""
    native_tokens: int
    """Tokens that the CLIP tower gives."""
    limits: ImageLimits = LOCAL_LIMITS
    """What a picture may cost."""

    @classmethod
    def of(cls, tower: VisionTower) -> Preparer:
        """The preparer for a tower, which needs no weights."""
        quadtree = isinstance(tower.image_processor, QLIPImageProcessor)
        native = tower.num_patches if quadtree else tower.count_tokens(torch.empty(3, 1, 1))
        return cls(tower.image_processor, tower.llava_config.image_aspect_ratio, native)

    def __call__(self, source: Source) -> Prepared | Unreadable:
        """Opens a picture and makes it ready."""
        try:
            with _without_pillows_limit():
                picture = load_image(source, self.limits)
        except ImageError as error:
            return Unreadable(str(error))
        if isinstance(self.processor, QLIPImageProcessor):
            return self._cut(picture, self.processor)
        config = SimpleNamespace(image_aspect_ratio=self.aspect_ratio)
        pixels = process_images([picture], self.processor, config)[0]
        size = (pixels.shape[-2], pixels.shape[-1])
        return Prepared(pixels, self.native_tokens, self.native_tokens, self.native_tokens, size)

    def _cut(self, picture: Image.Image, processor: QLIPImageProcessor) -> Prepared:
        view = quadtree_view(picture, processor)
        rows, cols = view.cut.leaves.grid
        span = view.tokens if view.settings.llm_positions == "sequential" else self.native_tokens
        size = (rows * processor.patch_size, cols * processor.patch_size)
        return Prepared(view.cut, view.tokens, span, view.uniform_tokens, size)


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Leaves it to our limits how many pixels a picture may have; Pillow's own, of the whole process, is lower."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


Prepare = Callable[[Source], Prepared | Unreadable]
"""A `Preparer`, or something else that other processes can be sent."""


def prepare_ahead(preparer: Prepare, sources: Sequence[Source], workers: int, ahead: int) -> Iterator[Any]:
    """`Prepared` or `Unreadable` for each source, in order. Workers begin at once, not when the first is asked for.

    Args:
        preparer: makes pictures ready.
        sources: the pictures.
        workers: processes; 0 does it here, when asked for the next one. They end when this process does, however.
        ahead: most pictures that are ready and wait.

    Raises:
        RuntimeError: a worker died, say for lack of memory.
    """
    if workers == 0 or not sources:
        return map(preparer, sources)
    loader: DataLoader[Any] = DataLoader(
        _Pictures(preparer, sources),
        batch_size=None,
        num_workers=min(workers, len(sources)),
        collate_fn=_as_it_is,
        prefetch_factor=max(1, math.ceil(ahead / workers)),
        worker_init_fn=_end_with_parent,
        multiprocessing_context="spawn",  # a fork would copy locks that this process's threads hold
    )
    return map(unpack, iter(loader))


class _Pictures(Dataset):
    """The sources, as a worker makes them ready: tensors become arrays, which travel without a file handle each."""

    def __init__(self, preparer: Prepare, sources: Sequence[Source]) -> None:
        self.preparer = preparer
        self.sources = sources

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Any:
        return pack(self.preparer(self.sources[index]))


def _end_with_parent(worker: int) -> None:
    """Ends a worker when its parent is killed, though it may wait for someone to take its pictures."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("a worker has no parent process")

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _as_it_is(item: Any) -> Any:
    return item


def pack(ready: Prepared | Unreadable) -> Any:
    """Arrays in the place of tensors."""
    if isinstance(ready, Unreadable):
        return ready
    facts = (ready.tokens, ready.span, ready.uniform_tokens, ready.size)
    if isinstance(ready.image, Tensor):
        return facts, ready.image.numpy()
    cut = ready.image
    small = None if cut.thumbnail is None else cut.thumbnail.numpy()
    return facts, (cut.leaves.boxes.numpy(), cut.leaves.grid, cut.patches.numpy(), small)


def unpack(packed: Any) -> Prepared | Unreadable:
    """The inverse of `pack`."""
    if isinstance(packed, Unreadable):
        return packed
    facts, image = packed
    if isinstance(image, np.ndarray):
        return Prepared(torch.from_numpy(image), *facts)
    boxes, grid, patches, small = image
    leaves = Leaves(torch.from_numpy(boxes), grid)
    cut = CutImage(leaves, torch.from_numpy(patches), None if small is None else torch.from_numpy(small))
    return Prepared(cut, *facts)
