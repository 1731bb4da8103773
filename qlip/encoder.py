"""QLIP around a CLIP or SigLIP vision model: images of any size -> features of their leaves (paper section 3).

The only file that knows the insides of transformers' vision models. The wrapped model's modules are adopted under their
own names, so that its checkpoints load unchanged. Knows nothing of language models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, CLIPVisionModel, PreTrainedModel, SiglipVisionModel

from qlip.config import QLIPConfig
from qlip.mlp import CoordinateMLP
from qlip.patches import CutImage, downsize, extract_patches, pad_ragged
from qlip.positions import interpolate_positions, raster_positions
from qlip.quadtree import Leaves, partition_as

VISION_MODELS: dict[str, type[PreTrainedModel]] = {
    "clip": CLIPVisionModel,
    "clip_vision_model": CLIPVisionModel,
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
}


@dataclass(frozen=True)
class QLIPOutput:
    """What `QLIPVisionModel` gives, one entry per image."""

    features: list[Tensor]
    """(M_i, D): the selected hidden layer; with a thumbnail its n * n tokens first, then the leaves in raster order."""

    leaves: list[Leaves]
    """The trees."""

    pooled: Tensor | None
    """(B, D): the model's own pooled output over [CLS] and leaves (SigLIP: its attention head), if asked for."""


class QLIPVisionModel(nn.Module):
    """A CLIP or SigLIP vision model that sees the leaves of a quadtree instead of a uniform grid.

    At alpha 0, without a budget and with an image of the native size it equals the wrapped model.

    Args:
        vision_model: transformers' CLIPVisionModel or SiglipVisionModel.
        config: the settings.
        select_layer: which hidden state to give, as an index into `hidden_states`; layers above it do not run.
    """

    config: Any
    embeddings: Any  # the wrapped model's modules, under their own names
    encoder: Any
    pre_layrnorm: Any
    post_layernorm: Any
    head: Any
    prior: CoordinateMLP | None

    def __init__(self, vision_model: PreTrainedModel, config: QLIPConfig | None = None, select_layer: int = -2) -> None:
        super().__init__()
        if not isinstance(vision_model, (CLIPVisionModel, SiglipVisionModel)):
            raise TypeError(
                f"{type(vision_model).__name__} is no CLIPVisionModel or SiglipVisionModel; QLIP needs a ViT with a"
                " table of absolute positions whose insides it knows"
            )
        for name, module in vision_model.named_children():
            self.add_module(name, module)
        self.config = vision_model.config
        self.qlip = config or QLIPConfig()
        self.prior = None
        depth = self.config.num_hidden_layers
        if not -depth - 1 <= select_layer <= depth:
            raise ValueError(f"select_layer is {select_layer}; a model of {depth} layers has -{depth + 1} to {depth}")
        self.select_layer = select_layer % (depth + 1)

    @classmethod
    def from_pretrained(
        cls, path: str, config: QLIPConfig | None = None, select_layer: int = -2, dtype: torch.dtype | None = None
    ) -> QLIPVisionModel:
        """Loads a CLIP or SigLIP checkpoint (folder or hub id, vision part or whole), and the prior if one is set."""
        model_type = AutoConfig.from_pretrained(path).model_type
        if model_type not in VISION_MODELS:
            raise ValueError(f"{path} is of type {model_type!r}; allowed are {', '.join(VISION_MODELS)}")
        model = cls(VISION_MODELS[model_type].from_pretrained(path, dtype=dtype), config, select_layer)
        model.load_prior()
        return model.eval()

    def load_prior(self) -> None:
        """Reads the MLP prior that the settings name, if any. After the model's own weights: it is no part of them."""
        if self.qlip.interpolation == "mlp" and self.qlip.mlp is not None:
            self.set_prior(CoordinateMLP.load(self.qlip.mlp))

    def set_prior(self, prior: CoordinateMLP) -> None:
        """Uses `prior` for positions; kept in float32 and out of the state dict.

        Raises:
            ValueError: its width is not the model's.
        """
        if (width := prior.layers[-1].out_features) != self.config.hidden_size:
            raise ValueError(f"the prior gives embeddings of {width}, the model has {self.config.hidden_size}")
        object.__setattr__(self, "prior", prior.requires_grad_(False))  # past nn.Module's registration

    @property
    def native_grid(self) -> int:
        """n: cells per side of the image that the model was trained on."""
        return self.config.image_size // self.config.patch_size

    @property
    def has_cls(self) -> bool:
        """Whether a [CLS] token with a position of its own stands first."""
        return hasattr(self.embeddings, "class_embedding")

    @property
    def position_table(self) -> Tensor:
        """(n * n, D): the pretrained position embeddings of the native grid, row by row, without [CLS]'s."""
        return self.embeddings.position_embedding.weight[int(self.has_cls) :]

    @property
    def cls_position(self) -> Tensor:
        """(1, D): [CLS]'s own position embedding; (0, D) where the tower has no [CLS]."""
        return self.embeddings.position_embedding.weight[: int(self.has_cls)]

    def partition(self, image: Tensor) -> Leaves:
        """The leaves of one image (C, H, W), by the settings; scored in float32."""
        return partition_as(self.qlip, image, self.config.patch_size, self.native_grid)

    def positions(self, leaves: Leaves) -> Tensor:
        """float32 ([CLS] +) N, D: position embeddings of an image's tokens, by the settings; [CLS] keeps its own."""
        table, config = self.position_table, self.qlip
        prior = None if self.prior is None else self.prior.to(table.device)
        placed = interpolate_positions(
            table, leaves, config.interpolation, prior, config.leaf_position, config.mlp_residual
        )
        return torch.cat([self.cls_position.float(), placed])

    def forward(self, images: Tensor | Sequence[Tensor], pool: bool = False) -> QLIPOutput:
        """Encodes images of any sizes in one padded batch.

        Args:
            images: float (B, C, H, W), or (C, H, W) each; normalised, sides multiples of the patch size.
            pool: run the whole model and give the pooled output too.

        Returns:
            Features in the model's dtype. An image's are the same in any batch, to float tolerance.

        Raises:
            TypeError, ValueError: an image is not floating point, or of sides that are no whole cells.
        """
        leaves = [self.partition(image) for image in images]
        return self.encode(images, leaves, [self.positions(tree) for tree in leaves], pool)

    def encode(
        self, images: Tensor | Sequence[Tensor], leaves: list[Leaves], positions: list[Tensor], pool: bool = False
    ) -> QLIPOutput:
        """`forward` with the leaves and the position embeddings given, say those of another prior, or zeros.

        Args:
            images: see `forward`.
            leaves: one tree per image.
            positions: float ([CLS] +) N_i, D each: what is added to the tokens; `positions` gives the usual ones.
                Gradients flow into them.
            pool: see `forward`.

        Raises:
            ValueError: positions of another number than the tokens, or leaves of another grid than the image.
        """
        side = self.native_grid * self.config.patch_size
        cuts = [
            CutImage(
                tree,
                extract_patches(image.float(), tree, self.config.patch_size),
                downsize(image, side) if self.qlip.thumbnail else None,
            )
            for image, tree in zip(images, leaves, strict=True)
        ]
        return self.encode_cut(cuts, positions, pool)

    def encode_cut(
        self, cuts: Sequence[CutImage], positions: list[Tensor] | None = None, pool: bool = False
    ) -> QLIPOutput:
        """`encode` for images whose leaves were cut out before, say by another process.

        Args:
            cuts: what is left of the images, on the model's device.
            positions: see `encode`; None for the usual ones.
            pool: see `forward`.

        Raises:
            ValueError: positions of another number than the tokens, or a thumbnail is missing.
        """
        leaves = [cut.leaves for cut in cuts]
        positions = positions or [self.positions(tree) for tree in leaves]
        for tree, added in zip(leaves, positions, strict=True):
            if len(added) != len(tree) + self.has_cls:
                raise ValueError(f"{len(added)} positions for {len(tree) + self.has_cls} tokens")
        sequences = self._embed([cut.patches for cut in cuts], positions)
        features, pooled = self._encode(sequences, [tree.sizes for tree in leaves], pool)
        if self.qlip.thumbnail:
            small = [cut.thumbnail for cut in cuts if cut.thumbnail is not None]
            features = [torch.cat(pair) for pair in zip(self._encode_native(small), features, strict=True)]
        return QLIPOutput(features, leaves, pooled)

    def language_positions(self, leaves: Leaves) -> Tensor | None:
        """float32 (M,): places of an image's tokens on the native raster; None where positions are sequential."""
        if self.qlip.llm_positions == "sequential":
            return None
        places = raster_positions(leaves, self.native_grid)
        if self.qlip.thumbnail:
            places = torch.cat([torch.arange(self.native_grid**2, dtype=torch.float32), places])
        return places

    def language_sizes(self, leaves: Leaves) -> Tensor | None:
        """float32 (M,): side of the square of cells that each token weighs in the language model's attention.

        Twice its logarithm is added to the token's attention logits: s * log(size^2) for `llm_size_bias` s, and one
        number for all where `llm_weight` is "native". None where every token weighs one.
        """
        config = self.qlip
        if config.llm_size_bias == 0 and config.llm_weight == "each":
            return None
        sizes = leaves.sizes.float()
        if config.thumbnail:
            covered = (leaves.grid[0] * leaves.grid[1]) ** 0.5 / self.native_grid
            sizes = torch.cat([torch.full((self.native_grid**2,), covered), sizes])
        sizes = sizes**config.llm_size_bias
        if config.llm_weight == "native":
            sizes = sizes * (self.native_grid / sizes.square().sum().sqrt())
        return None if (sizes == 1).all() else sizes

    def _encode_native(self, images: list[Tensor]) -> list[Tensor]:
        """Features (n * n, D) of images (C, S, S) of the native size, as the wrapped model gives them."""
        uniform = Leaves.uniform((self.native_grid, self.native_grid))
        patches = [extract_patches(image, uniform, self.config.patch_size) for image in images]
        sequences = self._embed(patches, [self.positions(uniform)] * len(images))
        return self._encode(sequences, [uniform.sizes] * len(images))[0]

    def _embed(self, patches: list[Tensor], positions: list[Tensor]) -> list[Tensor]:
        """Input sequences ([CLS] +) N_i of each image from patches (N_i, C, P, P) and positions of all tokens."""
        embeddings = self.embeddings
        projection = embeddings.patch_embedding
        dtype = projection.weight.dtype
        flat = torch.cat(patches).flatten(1).to(dtype)  # one product for the whole batch, as the convolution would give
        tokens = F.linear(flat, projection.weight.flatten(1), projection.bias)
        sequences = list(tokens.split([len(patch) for patch in patches]))
        if self.has_cls:
            cls = embeddings.class_embedding[None].to(dtype)
            sequences = [torch.cat([cls, sequence]) for sequence in sequences]
        return [sequence + added.to(dtype) for sequence, added in zip(sequences, positions, strict=True)]

    def _encode(
        self, sequences: list[Tensor], sizes: list[Tensor], pool: bool = False
    ) -> tuple[list[Tensor], Tensor | None]:
        """Runs the layers; gives the selected hidden state without [CLS], unpadded, and the pooled output."""
        hidden, valid = pad_ragged(sequences)
        mask = self._attention_mask(valid, sizes, hidden.dtype)
        if self.has_cls:
            hidden = self.pre_layrnorm(hidden)
        selected = hidden
        last = self.config.num_hidden_layers if pool else self.select_layer
        for number, layer in enumerate(self.encoder.layers[:last], start=1):
            hidden = layer(hidden, mask)
            if number == self.select_layer:
                selected = hidden
        skip = int(self.has_cls)
        features = [selected[i, skip : len(sequence)] for i, sequence in enumerate(sequences)]
        return features, self._pool(hidden, sequences) if pool else None

    def _attention_mask(self, valid: Tensor, sizes: list[Tensor], dtype: torch.dtype) -> Tensor | None:
        """Additive (B, 1, 1, T) over keys: lowest where padded, size bias on leaves; None where it would be zeros."""
        bias = self.qlip.size_bias
        ragged = len({len(size) for size in sizes}) > 1
        if not ragged and (bias == 0 or all((size == 1).all() for size in sizes)):
            return None
        mask = torch.zeros(valid.shape, dtype=torch.float32, device=valid.device)
        if bias:
            areas = [F.pad(2 * size.float().log(), (int(self.has_cls), 0)) for size in sizes]
            mask += bias * pad_ragged(areas)[0].to(mask)
        mask = mask.masked_fill(~valid, torch.finfo(dtype).min)
        return mask.to(dtype)[:, None, None, :]

    def _pool(self, hidden: Tensor, sequences: list[Tensor]) -> Tensor:
        """(B, D): [CLS] behind the last norm; SigLIP: the attention head, image by image so that it sees no padding."""
        hidden = self.post_layernorm(hidden)
        if self.has_cls:
            return hidden[:, 0]
        if not hasattr(self, "head"):
            raise ValueError("this SigLIP model has no pooling head (vision_use_head is false)")
        return torch.cat([self.head(hidden[i : i + 1, : len(s)]) for i, s in enumerate(sequences)])
