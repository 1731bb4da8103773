"""The adapter of open_clip's VisionTransformer; open_clip itself is not imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from qlip.backbones.base import LibraryAdapter, Normalisation


class OpenCLIPAdapter(LibraryAdapter):
    """open_clip's VisionTransformer; its pooled output is the image's embedding."""

    prefix = 1

    @property
    def pools(self) -> bool:  # type: ignore[override]
        return self.model.attn_pool is not None or getattr(self.model, "pool_type", "tok") != "none"

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
        return read_normalisation(self.model, (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))

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

    @property
    def checkpoints(self) -> bool:
        return self.model.transformer.grad_checkpointing

    def run(self, layer: Any, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:  # torch's attention takes a mask for every head and query
            heads, length = layer.attn.num_heads, hidden.shape[1]
            mask = mask.expand(-1, heads, length, -1).flatten(0, 1)
        return super().run(layer, hidden, mask)

    @property
    def patch_dropout(self) -> float:  # type: ignore[override]
        return getattr(self.model.patch_dropout, "prob", 0.0)

    def pre_norm(self, hidden: Tensor) -> Tensor:
        return self.model.ln_pre(hidden)

    def final_norm(self, hidden: Tensor) -> Tensor:
        return hidden

    def pool(self, last: Tensor) -> Tensor:
        pooled = self.model._pool(last)[0]
        return pooled if self.model.proj is None else pooled @ self.model.proj


def check_fits(model: Any) -> None:
    """Raises TypeError unless cells and grid are square and the pooled output is all: CoCa's decoder takes tokens."""
    if getattr(model, "output_tokens", False):
        raise TypeError(
            f"this {type(model).__name__} of open_clip returns its tokens beside the embedding, as in CoCa; QLIP gives"
            " the embedding alone"
        )
    height, width = model.patch_size
    if height != width:
        raise TypeError(
            f"this {type(model).__name__} of open_clip has patches of {height} x {width} pixels; QLIP needs square ones"
        )
    rows, cols = model.grid_size
    if rows != cols:
        raise TypeError(
            f"this {type(model).__name__} of open_clip has a grid of {rows} x {cols} cells; QLIP needs a square grid"
        )


def is_whole(model: Any) -> bool:
    """Whether this is a model of open_clip with a vision part."""
    return type(model).__module__.split(".")[0] == "open_clip" and hasattr(model, "visual")


def find_visual(model: Any) -> nn.Module | None:
    """Finds the vision transformer of an open_clip model, or of the timm model that it wraps; None for other models."""
    return getattr(model.visual, "trunk", model.visual) if is_whole(model) else None


def find_normalisation(model: Any, tower: Normalisation) -> Normalisation:
    """Finds what a model's images are normalised with: what open_clip's model says, else what its tower does.

    open_clip may train a tower of timm with other values than those of timm's weights.
    """
    return read_normalisation(model.visual, tower) if is_whole(model) else tower


def read_normalisation(visual: Any, other: Normalisation) -> Normalisation:
    """Reads the mean and std that open_clip.create_model has set, as get_model_preprocess_cfg does; else `other`."""
    known = getattr(visual, "preprocess_cfg", None)
    if not known:  # names of older releases
        known = {"mean": getattr(visual, "image_mean", None), "std": getattr(visual, "image_std", None)}
    return known.get("mean") or other[0], known.get("std") or other[1]
