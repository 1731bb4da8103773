"""The interface through which QLIP reads a vision transformer: its parts under common names. No quadtrees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

Normalisation = tuple[Sequence[float], Sequence[float]]


class ViTAdapter(ABC):
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
    def of(cls, view: nn.Module, model: nn.Module) -> ViTAdapter:
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

    def pre_norm(self, hidden: Tensor) -> Tensor:
        """What stands between embeddings and first layer."""
        return hidden

    @abstractmethod
    def final_norm(self, hidden: Tensor) -> Tensor:
        """The model's `last_hidden_state` from the last layer's output."""

    @abstractmethod
    def pool(self, last: Tensor) -> Tensor:
        """(B, D): the model's pooled output from a `last_hidden_state` (B, T, D) without padding."""


class LibraryAdapter(ViTAdapter):
    """For timm and open_clip, whose models have no configuration that QLIP reads and pool by their own methods."""

    attention = "sdpa"

    @classmethod
    def of(cls, view: nn.Module, model: nn.Module) -> ViTAdapter:
        return cls(model)
