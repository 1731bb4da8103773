"""Where the parts of timm's and open_clip's vision transformers are. Neither library is imported, nor needed.

They know no settings of ours in a configuration, and their models take whole images only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from qlip.anatomy import Anatomy, Normalisation


class ForeignAnatomy(Anatomy):
    """Read from the model itself, whose own methods pool."""

    attention = "sdpa"

    @classmethod
    def of(cls, view: nn.Module, model: nn.Module) -> Anatomy:
        return cls(model)


class TimmAnatomy(ForeignAnatomy):
    """timm's VisionTransformer; its pooled output is what its head makes of the tokens."""

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

    def run(self, layer: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return layer(hidden, attn_mask=mask)

    def begin(self, hidden: Tensor) -> Tensor:
        return self.model.norm_pre(hidden)

    def finish(self, hidden: Tensor) -> Tensor:
        return self.model.norm(hidden)

    def pool(self, last: Tensor) -> Tensor:
        return self.model.forward_head(last)


class OpenCLIPAnatomy(ForeignAnatomy):
    """open_clip's VisionTransformer; its pooled output is the image's embedding."""

    prefix = 1

    @property
    def width(self) -> int:
        return self.model.conv1.out_channels

    @property
    def depth(self) -> int:
        return len(self.model.transformer.resblocks)

    @property
    def patch_size(self) -> int:
        return self.model.patch_size[0]

    @property
    def native_grid(self) -> int:
        return self.model.grid_size[0]

    @property
    def normalisation(self) -> Normalisation:
        known = getattr(self.model, "preprocess_cfg", {})  # set by open_clip.create_model
        return known.get("mean", OPENAI_CLIP_MEAN), known.get("std", OPENAI_CLIP_STD)

    @property
    def patch_projection(self) -> nn.Conv2d:
        return self.model.conv1

    @property
    def prefix_tokens(self) -> Tensor:
        return self.model.class_embedding[None]

    @property
    def position_embeddings(self) -> Tensor:
        return self.model.positional_embedding

    @property
    def layers(self) -> Sequence[nn.Module]:
        return self.model.transformer.resblocks

    def run(self, layer: Any, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:  # torch's own attention wants one for every head and query
            heads, length = layer.attn.num_heads, hidden.shape[1]
            mask = mask.expand(-1, heads, length, -1).flatten(0, 1)
        return layer(hidden, attn_mask=mask)

    def begin(self, hidden: Tensor) -> Tensor:
        return self.model.ln_pre(hidden)

    def finish(self, hidden: Tensor) -> Tensor:
        return hidden

    def pool(self, last: Tensor) -> Tensor:
        pooled = self.model._pool(last)[0]
        return pooled if self.model.proj is None else pooled @ self.model.proj


def foreign_anatomy(vision_model: Any) -> type[Anatomy] | None:
    """The anatomy of a vision transformer of timm or open_clip; None for all else.

    Raises:
        TypeError: one of theirs that QLIP can't stand in.
    """
    kind = type(vision_model)
    library = next((k.__module__.split(".")[0] for k in kind.__mro__ if k.__name__ == "VisionTransformer"), None)
    if library == "open_clip":
        return OpenCLIPAnatomy
    if library != "timm":
        return None
    if unfit := list(_unfit(vision_model)):
        raise TypeError(
            f"this {kind.__name__} of timm has {', '.join(unfit)}; QLIP needs a square grid, a table and plain patches"
        )
    return TimmAnatomy


def _unfit(model: Any) -> Iterator[str]:
    """What of a VisionTransformer of timm does not go with `TimmAnatomy`."""
    embed = model.patch_embed
    rows, cols = embed.grid_size
    if rows != cols:
        yield f"a grid of {rows} x {cols} cells"
    if model.pos_embed is None:
        yield "no table of absolute positions"
    if not isinstance(getattr(embed, "norm", None), (nn.Identity, type(None))):
        yield "a norm behind its patches"
    found = sum(token.shape[1] for token in (model.cls_token, model.reg_token) if token is not None)
    if found != model.num_prefix_tokens:  # a distilled model's, for example
        yield f"{model.num_prefix_tokens} tokens before its patches, of which {found} are known"
    channels, kernel = getattr(embed.proj, "in_channels", None), getattr(embed.proj, "kernel_size", None)
    if channels != 3 or kernel != tuple(embed.patch_size):  # a hybrid model's, for example
        yield f"patches of {channels} channels and {kernel} values, not 3 and the picture's {embed.patch_size}"


def foreign_tower(model: Any) -> nn.Module | None:
    """The vision transformer in a model of open_clip, or in what it wraps timm's in; None for all else."""
    if type(model).__module__.split(".")[0] != "open_clip" or not hasattr(model, "visual"):
        return None
    return getattr(model.visual, "trunk", model.visual)
