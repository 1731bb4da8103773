"""Prepares images ahead of the model, in a thread or in worker processes.

The result is small: patches of leaves, not pixels. Workers load torch and Pillow, no models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llava.eval.run.inputs.image_workers import Ahead, ImageQueue
from llava.model.vision.prepared_image import PreparedImage
from llava.model.vision.preparer import Source, Unreadable
from qlip.patches import CutImage
from qlip.quadtree import Leaves
from qlip.question import QuestionCut

PrepareImage = Callable[[Source], PreparedImage | Unreadable]
"""A `Preparer`, or another callable that can be sent to other processes."""


def prepare_ahead(preparer: PrepareImage, sources: Sequence[Source], workers: int, ahead: int) -> Iterator[Any]:
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
        RuntimeError: a worker died, perhaps for lack of memory.
        Others: what the preparer raised, when it is that image's turn.
    """
    if workers == 0 or not sources:
        return map(preparer, sources)
    queue = ImageQueue(Packing(preparer), sources, workers, ahead)
    reader = Ahead(queue)
    queue.begin()
    return map(unpack, reader)


@dataclass(frozen=True)
class Packing:
    """Prepares images in the form of `pack`: arrays travel between processes without a file handle each."""

    prepare: PrepareImage

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
    cuts = [_arrays(part) for part in (waiting.kept, waiting.between, waiting.fine)]
    more = cuts, waiting.native_grid, waiting.settings
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
    cuts, native_grid, settings = more
    return PreparedImage(cut, **facts, question=QuestionCut(cut, *map(_cut, cuts), native_grid, settings))


def _arrays(cut: CutImage) -> tuple[Any, ...]:
    small = None if cut.thumbnail is None else cut.thumbnail.numpy()
    return cut.leaves.boxes.numpy(), cut.leaves.grid, cut.patches.numpy(), small


def _cut(arrays: tuple[Any, ...]) -> CutImage:
    boxes, grid, patches, small = arrays
    leaves = Leaves(torch.from_numpy(boxes), grid)
    return CutImage(leaves, torch.from_numpy(patches), None if small is None else torch.from_numpy(small))
