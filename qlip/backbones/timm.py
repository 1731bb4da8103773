"""The adapter of timm's VisionTransformer; timm itself is not imported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from qlip.backbones.base import LibraryAdapter, Normalisation


class TimmAdapter(LibraryAdapter):
    """timm's VisionTransformer; its pooled output is that of its head."""

    @property
    def pools(self) -> bool:  # type: ignore[override]
        return bool(self.model.global_pool) or self.model.attn_pool is not None

    @property
    def prefix(self) -> int:  # type: ignore[override]
        return self.model.num_prefix_tokens

    @property
    def width(self) -> int:
        return self.model.embed_dim

    @property
    def depth(self) -> int:
        return len(self.model.blocks)

    @property
    def patch_size(self) -> int:
        return self.model.patch_embed.patch_size[0]

    @property
    def native_grid(self) -> int:
        return self.model.patch_embed.grid_size[0]

    @property
    def normalisation(self) -> Normalisation:
        known = getattr(self.model, "pretrained_cfg", {})  # set by timm.create_model
        return known.get("mean", IMAGENET_STANDARD_MEAN), known.get("std", IMAGENET_STANDARD_STD)

    @property
    def patch_projection(self) -> nn.Conv2d:
        return self.model.patch_embed.proj

    @property
    def prefix_tokens(self) -> Tensor:
        return torch.cat([token[0] for token in (self.model.cls_token, self.model.reg_token) if token is not None])

    @property
    def position_embeddings(self) -> Tensor:
        table = self.model.pos_embed[0]
        if not self.model.no_embed_class:
            return table
        return torch.cat([table.new_zeros(self.prefix, self.width), table])

    @property
    def layers(self) -> Sequence[nn.Module]:
        return self.model.blocks

    @property
    def checkpoints(self) -> bool:
        return self.model.grad_checkpointing

    @property
    def patch_dropout(self) -> float:  # type: ignore[override]
        return getattr(self.model.patch_drop, "prob", 0.0)

    def pre_norm(self, hidden: Tensor) -> Tensor:
        return self.model.norm_pre(self.model.pos_drop(hidden))

    def final_norm(self, hidden: Tensor) -> Tensor:
        return self.model.norm(hidden)

    def pool(self, last: Tensor) -> Tensor:
        return self.model.forward_head(last)


def check_fits(model: Any) -> None:
    """Raises TypeError unless each square cell of a square grid has one token and one position of the table."""
    if unfit := list(_unfit(model)):
        raise TypeError(
            f"this {type(model).__name__} of timm has {', '.join(unfit)}; QLIP needs a square grid, a table and plain"
            " square patches"
        )


def _unfit(model: Any) -> Iterator[str]:
    """Yields what `TimmAdapter` does not support."""
    embed = model.patch_embed
    height, width = embed.patch_size
    if height != width:
        yield f"patches of {height} x {width} pixels"
    rows, cols = embed.grid_size
    if rows != cols:
        yield f"a grid of {rows} x {cols} cells"
    if model.pos_embed is None:
        yield "no table of absolute positions"
    if not isinstance(getattr(embed, "norm", None), (nn.Identity, type(None))):
        yield "a norm after its patches"
    found = sum(token.shape[1] for token in (model.cls_token, model.reg_token) if token is not None)
    if found != model.num_prefix_tokens:  # a distilled model's, for example
        yield f"{model.num_prefix_tokens} tokens before its patches, of which {found} are known"
    channels, kernel = getattr(embed.proj, "in_channels", None), getattr(embed.proj, "kernel_size", None)
    if channels != 3 or kernel != tuple(embed.patch_size):  # a hybrid model's, for example
        yield f"patches of {channels} channels and a kernel of {kernel}, not 3 and {embed.patch_size}"
