"""Prepares images ahead of the model, in a thread or in worker processes: opens, resizes and cuts them.

The result is small: patches of leaves, not pixels. Workers load torch and Pillow, no models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from llava.eval.run.inputs.image_workers import Ahead, ImageQueue
from llava.images import ImageError, ImageLimits, load_image
from llava.model.vision.prepared_image import PreparedImage, prepare_leaves, prepare_pixels
from qlip.config import QLIPConfig
from qlip.image_limits import LOCAL_LIMITS
from qlip.patches import CutImage
from qlip.pictures import without_pillows_limit
from qlip.quadtree import Leaves
from qlip.question import QuestionCut

if TYPE_CHECKING:
    from llava.model.multimodal_encoder.base import VisionTower

Source = str | Path


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be opened."""

    reason: str
    """Shown to the user."""


@dataclass(frozen=True)
class Preparer:
    """Source -> `PreparedImage`, without the model; can be sent to other processes."""

    processor: Any
    """An `ImageCutter`, or a CLIP or SigLIP image processor."""
    settings: QLIPConfig | None
    """The quadtree's."""
    aspect_ratio: str | None
    """The model's `image_aspect_ratio`."""
    native_tokens: int
    """Tokens of an image of the native size."""
    limits: ImageLimits = LOCAL_LIMITS
    """Limits on an image's file and pixels."""
    pinpoints: Any = None
    """The model's `image_grid_pinpoints`, for anyres."""
    merge: str = "flat"
    """The model's `mm_patch_merge_type`."""
    side: int | None = None
    """Side in pixels of the images that the tower was trained on; None is the cutter's own."""

    @classmethod
    def of(cls, tower: VisionTower) -> Preparer:
        """Builds the preparer for a tower, which needs no weights."""
        cutter = getattr(tower.image_processor, "cutter", None)
        processor = tower.image_processor if cutter is None else cutter
        settings = None if cutter is None else tower.image_processor.qlip
        config = tower.llava_config
        tiling = {"pinpoints": config.image_grid_pinpoints, "merge": config.mm_patch_merge_type}
        ratio, side = config.image_aspect_ratio, tower.input_size
        return cls(processor, settings, ratio, tower.native_tokens, **tiling, side=side)

    @property
    def tiling(self) -> SimpleNamespace:
        """The fields of the model's configuration that say how images are padded or tiled."""
        return SimpleNamespace(
            image_aspect_ratio=self.aspect_ratio, image_grid_pinpoints=self.pinpoints, mm_patch_merge_type=self.merge
        )

    def by_score(self) -> Preparer:
        """Builds the preparer for training, where no question can decide what is split."""
        return self if self.settings is None else replace(self, settings=replace(self.settings, budget="score"))

    def __call__(self, source: Source) -> PreparedImage | Unreadable:
        """Opens and prepares an image."""
        try:
            with without_pillows_limit():
                image = load_image(source, self.limits)
        except ImageError as error:
            return Unreadable(str(error))
        if self.settings is not None:
            return prepare_leaves(image, self.processor, self.settings, self.tiling, self.side)
        return prepare_pixels(image, self.processor, self.tiling, self.native_tokens)


PreparePicture = Callable[[Source], PreparedImage | Unreadable]
"""A `Preparer`, or another callable that can be sent to other processes."""


def prepare_ahead(preparer: PreparePicture, sources: Sequence[Source], workers: int, ahead: int) -> Iterator[Any]:
    """Prepares images in order, ahead of the reader; see `llava.eval.run.inputs.image_workers`.

    Args:
        preparer: prepares one image.
        sources: the images.
        workers: most processes; 0 prepares each image here when it is asked for. Those that pay start now, and end when
            this process ends, even if it is killed; without any, and until they are up, a thread prepares ahead.
        ahead: most images that are ready and not taken yet.

    Returns:
        A `PreparedImage` or `Unreadable` for each source.

    Raises:
        RuntimeError: a worker died, say for lack of memory.
        Others: what the preparer raised, in the image's place.
    """
    if workers == 0 or not sources:
        return map(preparer, sources)
    queue = ImageQueue(Packing(preparer), sources, workers, ahead)
    reader = Ahead(queue)
    queue.begin()
    return map(unpack, reader)


@dataclass(frozen=True)
class Packing:
    """Prepares images as `pack` gives them: arrays travel between processes without a file handle each."""

    prepare: PreparePicture

    def __call__(self, source: Source) -> Any:
        """Prepares one image."""
        return pack(self.prepare(source))


def pack(ready: PreparedImage | Unreadable) -> Any:
    """Replaces the tensors of a prepared image by arrays."""
    if isinstance(ready, Unreadable):
        return ready
    facts = {
        field.name: getattr(ready, field.name)
        for field in fields(ready)
        if field.name not in ("image", "question", "order")
    }
    if isinstance(ready.image, Tensor):
        return facts, ready.image.numpy(), None
    if isinstance(ready.image, tuple):
        return facts, [_arrays(cut) for cut in ready.image], None
    waiting = ready.question
    if waiting is None:
        return facts, _arrays(ready.image), None
    more = _arrays(waiting.kept), _arrays(waiting.fine), waiting.native_grid, waiting.settings
    return facts, _arrays(ready.image), more


def unpack(packed: Any) -> PreparedImage | Unreadable:
    """Inverts `pack`."""
    if isinstance(packed, Unreadable):
        return packed
    facts, image, more = packed
    if isinstance(image, np.ndarray):
        return PreparedImage(torch.from_numpy(image), **facts)
    if isinstance(image, list):
        return PreparedImage(tuple(_cut(part) for part in image), **facts)
    cut = _cut(image)
    if more is None:
        return PreparedImage(cut, **facts)
    kept, fine, native_grid, settings = more
    return PreparedImage(cut, **facts, question=QuestionCut(cut, _cut(kept), _cut(fine), native_grid, settings))


def _arrays(cut: CutImage) -> tuple[Any, ...]:
    small = None if cut.thumbnail is None else cut.thumbnail.numpy()
    return cut.leaves.boxes.numpy(), cut.leaves.grid, cut.patches.numpy(), small


def _cut(arrays: tuple[Any, ...]) -> CutImage:
    boxes, grid, patches, small = arrays
    leaves = Leaves(torch.from_numpy(boxes), grid)
    return CutImage(leaves, torch.from_numpy(patches), None if small is None else torch.from_numpy(small))
