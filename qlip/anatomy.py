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
from transformers import CLIPVisionModel, Dinov2Model, PreTrainedModel, SiglipVisionModel


class Anatomy(ABC):
    """The parts of a vision transformer with a table of absolute positions.

    Parts are looked up whenever they are asked for, so that casts, moves and adapters of the model are seen.

    Args:
        model: the model, or a module that holds its parts under the same names.
    """

    has_cls: bool
    """Whether a [CLS] token with a position of its own stands first."""

    pools: bool = True
    """Whether the model has a pooled output."""

    def __init__(self, model: Any) -> None:
        self.model = model

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
    def patch_projection(self) -> nn.Conv2d:
        """The convolution from a patch to its token."""

    @property
    @abstractmethod
    def cls_token(self) -> Tensor:
        """(1, D): [CLS] without its position; read only where the tower has one."""

    @property
    @abstractmethod
    def position_embeddings(self) -> Tensor:
        """(([CLS] +) n * n, D): the pretrained table, row by row."""

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

    has_cls = True

    @property
    def patch_projection(self) -> nn.Conv2d:
        return self.model.embeddings.patch_embedding

    @property
    def cls_token(self) -> Tensor:
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

    has_cls = False

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

    has_cls = True

    @property
    def patch_projection(self) -> nn.Conv2d:
        return self.model.embeddings.patch_embeddings.projection

    @property
    def cls_token(self) -> Tensor:
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


ANATOMIES: tuple[tuple[type[PreTrainedModel], type[Anatomy]], ...] = (
    (CLIPVisionModel, CLIPAnatomy),
    (SiglipVisionModel, SiglipAnatomy),
    (Dinov2Model, Dinov2Anatomy),
)

NO_PLACE_FOR_LEAVES = {
    "QFormer": "its Q-Former turns any image into a fixed number of tokens",
    "Resampler": "its resampler turns any image into a fixed number of tokens",
    "Perceiver": "its resampler turns any image into a fixed number of tokens",
    "Rotary": "the positions of its vision tower are rotary, not a table of absolute ones to read a leaf's from",
    "Rope": "the positions of its vision tower are rotary, not a table of absolute ones to read a leaf's from",
    "RelativePositionBias": "the positions of its vision tower are biases between the cells of a uniform grid",
}
"""Part of the class name of a module that does not go with leaves -> why."""

TEXT_PARTS = ("language_model", "text_model", "lm_head")
"""Names of parts that know no picture."""


def anatomy_of(vision_model: nn.Module) -> type[Anatomy]:
    """Where the parts of a vision model are.

    Raises:
        TypeError: QLIP can't stand in it, or does not know it.
    """
    for known, anatomy in ANATOMIES:
        if isinstance(vision_model, known):
            return anatomy
    known_names = ", ".join(known.__name__ for known, _ in ANATOMIES)
    reason = why_not(vision_model) or "QLIP needs a ViT with a table of absolute positions whose insides it knows"
    raise TypeError(f"{type(vision_model).__name__} is none of {known_names}: {reason}")


def why_not(model: nn.Module) -> str | None:
    """Why leaves can't be this model's tokens, told from the modules it is made of; None where nothing speaks so."""
    seen = {
        type(module).__name__
        for name, module in model.named_modules()
        if not any(part in name.split(".") for part in TEXT_PARTS)
    }
    return next((why for part, why in NO_PLACE_FOR_LEAVES.items() if any(part in name for name in seen)), None)
