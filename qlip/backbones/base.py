"""The interface of the adapters: the parts of a vision transformer under common names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Normalisation = tuple[Sequence[float], Sequence[float]]


class ViTAdapter(ABC):
    """The parts of a vision transformer with a table of absolute positions.

    Parts are looked up at each access, so that casts, moves and adapters of the model take effect.

    Args:
        model: the model, or a module that holds its parts under the same names.
    """

    prefix: int
    """k: tokens before the patches, such as [CLS]."""

    pools: bool = True
    """Whether the model has a pooled output."""

    patch_dropout: float = 0.0
    """Share of the patches that the model leaves out in training."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @classmethod
    def of(cls, view: nn.Module, model: nn.Module) -> ViTAdapter:
        """Makes the adapter of a model whose parts `view` shares."""
        return cls(view)

    @property
    def width(self) -> int:
        """D: size of the hidden states."""
        return self.model.config.hidden_size

    @property
    def depth(self) -> int:
        """Number of layers."""
        return self.model.config.num_hidden_layers

    @property
    def patch_size(self) -> int:
        """P, pixels per side of a cell."""
        return _read_side("patch_size", self.model.config.patch_size)

    @property
    def native_grid(self) -> int:
        """n: cells per side of the images that the position table was trained on."""
        return _read_side("image_size", self.model.config.image_size) // self.patch_size

    @property
    def attention(self) -> str:
        """transformers' name of the attention that the layers use."""
        return self.model.config._attn_implementation

    @property
    @abstractmethod
    def normalisation(self) -> Normalisation:
        """Mean and standard deviation per channel, of pixels in [0, 1], that the model was trained with."""

    @property
    @abstractmethod
    def patch_projection(self) -> nn.Conv2d:
        """The convolution from a patch to its token."""

    def project(self, patches: Tensor) -> Tensor:
        """Projects patches (N, C, P, P) to tokens (N, D)."""
        projection = self.patch_projection
        patches = patches.to(projection.weight.dtype)
        if type(projection) is nn.Conv2d and not _is_watched(projection):  # the convolution as one matrix product
            return F.linear(patches.flatten(1), projection.weight.flatten(1), projection.bias)
        return projection(patches).flatten(1)

    def embed(self, patches: Sequence[Tensor], positions: Sequence[Tensor]) -> list[Tensor]:
        """Builds each image's input sequence ([CLS] +) N_i from patches (N_i, C, P, P) and positions of all tokens."""
        tokens, dtype = self.project(torch.cat(list(patches))), self.patch_projection.weight.dtype
        sequences = list(tokens.split([len(patch) for patch in patches]))
        if self.prefix:
            sequences = [torch.cat([self.prefix_tokens.to(dtype), sequence]) for sequence in sequences]
        return [sequence + added.to(dtype) for sequence, added in zip(sequences, positions, strict=True)]

    @property
    @abstractmethod
    def prefix_tokens(self) -> Tensor:
        """(k, D): the tokens before the patches, without their positions; read only if k > 0."""

    @property
    @abstractmethod
    def position_embeddings(self) -> Tensor:
        """(k + n * n, D): the pretrained table, row by row."""

    @property
    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """The transformer's layers."""

    def run(self, layer: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Runs one layer on hidden states (B, T, D) with an additive mask (B, 1, 1, T) over keys."""
        return layer(hidden, mask)

    def pre_norm(self, hidden: Tensor) -> Tensor:
        """Normalises the embeddings before the first layer."""
        return hidden

    @abstractmethod
    def final_norm(self, hidden: Tensor) -> Tensor:
        """Computes the model's `last_hidden_state` from the last layer's output."""

    @abstractmethod
    def pool(self, last: Tensor) -> Tensor:
        """Computes the pooled output (B, D) from a `last_hidden_state` (B, T, D) without padding."""


def _is_watched(module: nn.Module) -> bool:
    """Whether a module's call does more than its class's `forward`: it has hooks, or a wrapped `forward`.

    Adapters train under reentrant checkpointing only with the hook of `enable_input_require_grads`.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


class LibraryAdapter(ViTAdapter):
    """Base of the adapters of timm and open_clip, whose models have no configuration and pool by their own methods."""

    attention = "sdpa"

    @classmethod
    def of(cls, view: nn.Module, model: nn.Module) -> ViTAdapter:
        return cls(model)

    @property
    @abstractmethod
    def checkpoints(self) -> bool:
        """Whether the library's set_grad_checkpointing is on: layers run again in the backward pass."""

    def run(self, layer: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if self.checkpoints and torch.is_grad_enabled():
            return checkpoint(layer, hidden, attn_mask=mask, use_reentrant=False)
        return layer(hidden, attn_mask=mask)


def _read_side(name: str, size: Any) -> int:
    """Reads a side that a configuration may have as (height, width).

    Raises:
        ValueError: the two differ.
    """
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"{name} is {size!r} in the model's configuration; QLIP supports square sizes only")
    return int(sides.pop())
