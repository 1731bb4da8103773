"""Batches of training: padded samples and their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import get_worker_info

from llava.constants import IGNORE_INDEX
from llava.train.data.lengths import count_tokens
from llava.train.data.packing import assign_rows
from llava.train.throughput import BatchCounts
from qlip.patches import CutImage
from qlip.quadtree import Leaves


@dataclass
class DataCollatorForSupervisedDataset:
    """Makes a batch of samples: padded on the right, images in one list."""

    tokenizer: Any
    """Its pad token fills the rows up, or 0; the attention mask follows the lengths, whatever the token."""
    pack: int | None = None
    """Most text and visual tokens of a row that several samples share; None: a row for each sample."""

    def __call__(self, instances: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collates samples; those left out are only counted.

        Returns:
            `input_ids` and `labels`, int64 (B, L); `attention_mask`, bool (B, L); `images`, float32 (N, C, H, W) where
            shapes agree, else a list, and none where no sample has one; `image_sizes`, (width, height) of each before
            it was prepared, where tiles are joined; `packs`, int64 (B,), the row of each sample,
            with `pack`; `counts`. A batch without samples is one token that is not trained on: every process takes
            part in every step.
        """
        used = [item for item in instances if "skipped" not in item]
        pad = getattr(self.tokenizer, "pad_token_id", None) or 0
        ids = [item["input_ids"] for item in used] or [torch.tensor([pad])]
        labels = [item["labels"] for item in used] or [torch.tensor([IGNORE_INDEX])]
        batch: dict[str, Any] = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
            "attention_mask": pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in ids], batch_first=True),
        }
        if images := [image for item in used for image in item["images"]]:
            batch["images"] = _join(images)
            sizes: list[Any] = []
            for item in used:
                sizes += item.get("image_sizes", [None] * len(item["images"]))
            if any(size is not None for size in sizes):
                batch["image_sizes"] = sizes
        packs: list[int] | None = None
        if self.pack is not None:
            packs = assign_rows([count_tokens(item) for item in used], self.pack)
            batch["packs"] = torch.tensor(packs or [0])
        batch["counts"] = BatchCounts.of(instances, packs)
        return batch


def _join(images: list[Any]) -> Tensor | list[Any]:
    """Stacks pixels of one shape. In a worker process the tensors of leaves are laid end to end.

    Every storage that a worker sends keeps a file open in the main process, and a batch of leaves has three per image.
    """
    if all(isinstance(image, Tensor) for image in images):
        return torch.stack(images) if len({image.shape for image in images}) == 1 else images
    if get_worker_info() is None or not all(isinstance(image, CutImage) for image in images):
        return images
    sizes = [len(image.leaves) for image in images]
    boxes = torch.cat([image.leaves.boxes for image in images]).split(sizes)
    patches = torch.cat([image.patches for image in images]).split(sizes)
    small = [image.thumbnail for image in images]
    small = list(torch.stack(small)) if all(one is not None for one in small) else small
    parts = zip(images, boxes, patches, small, strict=True)
    return [CutImage(Leaves(own, image.leaves.grid), pixels, one) for image, own, pixels, one in parts]
