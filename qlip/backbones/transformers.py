"""The adapters of transformers' vision models: CLIP, SigLIP and DINOv2."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from qlip.backbones.base import Normalisation, ViTAdapter


class CLIPAdapter(ViTAdapter):
    """CLIP: [CLS], a norm before the layers; [CLS] after another norm is the pooled output."""

    prefix = 1

    @property
    def normalisation(self) -> Normalisation:
        return OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    @property
    def patch_projection(self) -> nn.Conv2d:
        return self.model.embeddings.patch_embedding

    @property
    def prefix_tokens(self) -> Tensor:
        return self.model.embeddings.class_embedding[None]

    @property
    def position_embeddings(self) -> Tensor:
        table = self.model.embeddings.position_embedding
        if type(table) is nn.Embedding:
            return table.weight
        return table(torch.arange(len(table.weight), device=table.weight.device))  # an adapter of PEFT around it

    @property
    def layers(self) -> Sequence[nn.Module]:
        return self.model.encoder.layers

    def pre_norm(self, hidden: Tensor) -> Tensor:
        return self.model.pre_layrnorm(hidden)

    def final_norm(self, hidden: Tensor) -> Tensor:
        return hidden

    def pool(self, last: Tensor) -> Tensor:
        return self.model.post_layernorm(last[:, 0])


class SiglipAdapter(CLIPAdapter):
    """SigLIP: no [CLS]; a head attends to all tokens after the last norm."""

    prefix = 0

    @property
    def normalisation(self) -> Normalisation:
        return IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

    @property
    def pools(self) -> bool:  # type: ignore[override]
        return hasattr(self.model, "head")

    def pre_norm(self, hidden: Tensor) -> Tensor:
        return hidden

    def final_norm(self, hidden: Tensor) -> Tensor:
        return self.model.post_layernorm(hidden)

    def pool(self, last: Tensor) -> Tensor:
        return self.model.head(last)


class Dinov2Adapter(ViTAdapter):
    """DINOv2: [CLS], which after the last norm is the pooled output."""

    prefix = 1

    @property
    def normalisation(self) -> Normalisation:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    @property
    def patch_projection(self) -> nn.Conv2d:
        return self.model.embeddings.patch_embeddings.projection

    @property
    def prefix_tokens(self) -> Tensor:
        return self.model.embeddings.cls_token[0]

    @property
    def position_embeddings(self) -> Tensor:
        return self.model.embeddings.position_embeddings[0]

    @property
    def layers(self) -> Sequence[nn.Module]:
        return self.model.encoder.layer

    def run(self, layer: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if "attention_mask" in inspect.signature(layer.forward).parameters:
            return layer(hidden, mask)
        return layer(hidden) if mask is None else run_one_by_one(layer, hidden, mask)

    def final_norm(self, hidden: Tensor) -> Tensor:
        return self.model.layernorm(hidden)

    def pool(self, last: Tensor) -> Tensor:
        return last[:, 0]


def run_one_by_one(layer: nn.Module, hidden: Tensor, mask: Tensor) -> Tensor:
    """Runs a layer that takes no mask (DINOv2's in older transformers) on a padded batch, image by image.

    Args:
        layer: from (1, T, D) to (1, T, D).
        hidden: (B, T, D), padded at the end.
        mask: additive (B, 1, 1, T), lowest on padding.

    Raises:
        ValueError: the mask has a bias, or differs between queries, which such a layer can't apply.
    """
    if mask.shape[2] > 1:
        raise ValueError("keep_split_cells is set, but this model's attention takes no mask in this transformers")
    keys = mask[:, 0, 0]
    valid = keys > torch.finfo(mask.dtype).min
    if keys[valid].any():
        raise ValueError("size_bias is set, but this model's attention takes no mask in the installed transformers")
    rows = [layer(row[None, :length])[0] for row, length in zip(hidden, valid.sum(1).tolist(), strict=True)]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)
