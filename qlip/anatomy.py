"""Where the parts of a vision transformer are: CLIP's, SigLIP's and DINOv2's in transformers.

The only file that knows the insides of transformers' vision models. Knows nothing of quadtrees.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

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

Normalisation = tuple[Sequence[float], Sequence[float]]


class Anatomy(ABC):
    """The parts of a vision transformer with a table of absolute positions.

    Parts are looked up whenever they are asked for, so that casts, moves and adapters of the model are seen.

    Args:
        model: the model, or a module that holds its parts under the same names.
    """

    prefix: int
    """k: tokens before the patches', [CLS] where the tower has one."""

    pools: bool = True
    """Whether the model has a pooled output."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @classmethod
    def of(cls, view: nn.Module, model: nn.Module) -> Anatomy:
        """Of a model whose parts `view` has adopted."""
        return cls(view)

    @property
    def width(self) -> int:
        """D, of the hidden states."""
        return self.model.config.hidden_size

    @property
    def depth(self) -> int:
        """Number of layers."""
        return self.model.config.num_hidden_layers

    @property
    def patch_size(self) -> int:
        """P, pixels per side of a cell."""
        return self.model.config.patch_size

    @property
    def native_grid(self) -> int:
        """n: cells per side of the image that the position table was made for."""
        return self.model.config.image_size // self.patch_size

    @property
    def attention(self) -> str:
        """transformers' name of the attention that the layers run with."""
        return self.model.config._attn_implementation

    @property
    @abstractmethod
    def normalisation(self) -> Normalisation:
        """Mean and standard deviation per channel, of pixels in [0, 1], that such models are trained with."""

    @property
    @abstractmethod
    def patch_projection(self) -> nn.Conv2d:
        """The convolution from a patch to its token."""

    @property
    @abstractmethod
    def prefix_tokens(self) -> Tensor:
        """(k, D): the tokens before the patches', without their positions; read only where there are some."""

    @property
    @abstractmethod
    def position_embeddings(self) -> Tensor:
        """(k + n * n, D): the pretrained table, row by row."""

    @property
    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """The transformer's layers."""

    def run(self, layer: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """One layer on hidden states (B, T, D) with an additive mask (B, 1, 1, T) over keys."""
        return layer(hidden, mask)

    def begin(self, hidden: Tensor) -> Tensor:
        """What stands between embeddings and first layer."""
        return hidden

    @abstractmethod
    def finish(self, hidden: Tensor) -> Tensor:
        """The model's `last_hidden_state` from the last layer's output."""

    @abstractmethod
    def pool(self, last: Tensor) -> Tensor:
        """(B, D): the model's pooled output from a `last_hidden_state` (B, T, D) without padding."""


class CLIPAnatomy(Anatomy):
    """[CLS], a norm before the layers; [CLS] behind another norm is the pooled output."""

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
        return self.model.embeddings.position_embedding.weight

    @property
    def layers(self) -> Sequence[nn.Module]:
        return self.model.encoder.layers

    def begin(self, hidden: Tensor) -> Tensor:
        return self.model.pre_layrnorm(hidden)

    def finish(self, hidden: Tensor) -> Tensor:
        return hidden

    def pool(self, last: Tensor) -> Tensor:
        return self.model.post_layernorm(last[:, 0])


class SiglipAnatomy(CLIPAnatomy):
    """No [CLS]; a head attends to all tokens behind the last norm."""

    prefix = 0

    @property
    def normalisation(self) -> Normalisation:
        return IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

    @property
    def pools(self) -> bool:  # type: ignore[override]
        return hasattr(self.model, "head")

    def begin(self, hidden: Tensor) -> Tensor:
        return hidden

    def finish(self, hidden: Tensor) -> Tensor:
        return self.model.post_layernorm(hidden)

    def pool(self, last: Tensor) -> Tensor:
        return self.model.head(last)


class Dinov2Anatomy(Anatomy):
    """[CLS]; behind the last norm it is the pooled output."""

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

    def finish(self, hidden: Tensor) -> Tensor:
        return self.model.layernorm(hidden)

    def pool(self, last: Tensor) -> Tensor:
        return last[:, 0]


def run_one_by_one(layer: nn.Module, hidden: Tensor, mask: Tensor) -> Tensor:
    """A layer that takes no mask (DINOv2's in older transformers) on a padded batch: image by image.

    Args:
        layer: from (1, T, D) to its like.
        hidden: (B, T, D), padded behind.
        mask: additive (B, 1, 1, T), lowest on padding.

    Raises:
        ValueError: the mask has a bias, which such a layer can't apply.
    """
    keys = mask[:, 0, 0]
    valid = keys > torch.finfo(mask.dtype).min
    if keys[valid].any():
        raise ValueError("size_bias is set, but this model's attention takes no mask in the installed transformers")
    rows = [layer(row[None, :length])[0] for row, length in zip(hidden, valid.sum(1).tolist(), strict=True)]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)
