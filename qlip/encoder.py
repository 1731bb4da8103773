"""QLIP around a vision transformer: images of any size -> features of their leaves (paper section 3).

The wrapped model's modules keep their own names, so that its checkpoints load unchanged (`qlip.backbones`).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qlip.backbones.registry import find_adapter, load_vision_model
from qlip.config import QLIPConfig
from qlip.language_positions import ImageSpan, image_span
from qlip.mlp import CoordinateMLP
from qlip.outputs import HiddenStates, QLIPOutput
from qlip.patches import CutImage, check_cuts, downsize
from qlip.positions import interpolate_positions
from qlip.quadtree import Leaves, measure_sizes
from qlip.ragged import key_mask, pad_ragged
from qlip.replicas import RefusesReplicas
from qlip.saved_settings import locate_prior, read_saved_settings
from qlip.split_cells import SplitCells, hide_tokens
from qlip.untraced import add_split_cells, extract_patches, native_cut, partition_as


class QLIPVisionModel(RefusesReplicas, nn.Module):
    """A CLIP, SigLIP or DINOv2 vision model over the leaves of a quadtree instead of a uniform grid.

    Equals the wrapped model at alpha 0, without a budget, on an image of the native size. Methods that take `settings`
    use them for that call; None means the model's own, `qlip`.

    Args:
        vision_model: transformers' CLIPVisionModel, SiglipVisionModel or Dinov2Model; timm's or open_clip's
            VisionTransformer.
        config: the model's own settings, or their dict.
        select_layer: the hidden state to return, as an index into `hidden_states`, or several of them; layers above
            the highest do not run.
    """

    config: Any
    embeddings: Any  # the wrapped model's modules, under their own names
    encoder: Any
    prior: CoordinateMLP | None

    def __init__(
        self,
        vision_model: nn.Module,
        config: QLIPConfig | Mapping[str, Any] | None = None,
        select_layer: int | Sequence[int] = -2,
    ) -> None:
        super().__init__()
        kind = find_adapter(vision_model)
        for name, module in vision_model.named_children():
            self.add_module(name, module)
        # One dict for both, as timm's and open_clip's own methods read the wrapped model: a replaced one is in both.
        self._parameters = vision_model._parameters
        self.config = getattr(vision_model, "config", None)  # timm's and open_clip's have none
        self.adapter = kind.of(self, vision_model)
        self.qlip = config if isinstance(config, QLIPConfig) else QLIPConfig.from_dict(config or {})
        self.prior = None
        self.prior_file: str | None = None  # the setting `mlp` that the prior belongs to
        self.select_layers = self.resolve_layers(select_layer)
        self.select_layer = max(self.select_layers)  # the highest that runs

    def resolve_layers(self, select: int | Sequence[int]) -> tuple[int, ...]:
        """Converts layers to indices into `hidden_states`, counted from 0.

        Raises:
            TypeError: a layer is not an integer.
            ValueError: the model has no such layer.
        """
        depth = self.adapter.depth
        layers = list(select) if isinstance(select, Sequence) and not isinstance(select, str) else [select]
        if not layers or any(not isinstance(layer, int) or isinstance(layer, bool) for layer in layers):
            raise TypeError(f"select_layer is {select!r}; it must be an integer, or several")
        if wrong := [layer for layer in layers if not -depth - 1 <= layer <= depth]:
            raise ValueError(f"select_layer is {wrong[0]}; a model of {depth} layers has -{depth + 1} to {depth}")
        return tuple(layer % (depth + 1) for layer in layers)

    @classmethod
    def from_pretrained(
        cls, path: str, config: QLIPConfig | None = None, select_layer: int = -2, dtype: torch.dtype | None = None
    ) -> QLIPVisionModel:
        """Loads a vision checkpoint (folder or hub id, vision part or whole), and the prior if one is set.

        `config` None takes the settings, and the prior, that an attached model saved there; else the defaults.
        """
        vision, saved = load_vision_model(path, dtype)
        model = cls(vision, config or locate_prior(read_saved_settings(saved.get("qlip")), path), select_layer)
        model.load_prior()
        return model.eval()

    def load_prior(self) -> None:
        """Loads the MLP prior of the settings, if any; call it after the weights, which do not include it."""
        self.change_settings(self.qlip)

    def change_settings(self, settings: QLIPConfig) -> None:
        """Replaces the settings and their prior, which is read again if its file changed; on an error nothing changes.

        Raises:
            OSError, ValueError: the prior cannot be read, or is of another width.
        """
        wanted = settings.mlp if settings.interpolation == "mlp" else None
        known = self.prior if wanted == self.prior_file else None
        if wanted is not None and (known is None or not known.is_current(wanted)):
            self.set_prior(CoordinateMLP.load(wanted), wanted)
        self.qlip = settings

    def set_prior(self, prior: CoordinateMLP, file: str | None = None) -> None:
        """Uses a frozen float32 copy of `prior` for positions, which stays out of the state dict.

        Args:
            file: its file, as `QLIPConfig.mlp` names it; None uses it in place of the prior that the settings name.

        Raises:
            ValueError: its width is not the model's.
        """
        if (width := prior.layers[-1].out_features) != self.adapter.width:
            raise ValueError(f"the prior gives embeddings of {width}, the model has {self.adapter.width}")
        own = copy.deepcopy(prior).float().requires_grad_(False)
        object.__setattr__(self, "prior", own)  # past nn.Module's registration
        self.prior_file = self.qlip.mlp if file is None else file

    @property
    def native_grid(self) -> int:
        """n: cells per side of the image that the model was trained on."""
        return self.adapter.native_grid

    @property
    def has_cls(self) -> bool:
        """Whether a [CLS] token comes first."""
        return self.adapter.prefix > 0

    @property
    def position_table(self) -> Tensor:
        """(n * n, D): the pretrained position embeddings of the native grid, row by row, without [CLS]'s."""
        return self.adapter.position_embeddings[self.adapter.prefix :]

    @property
    def cls_position(self) -> Tensor:
        """(k, D): the position embeddings of the tokens before the patches, usually [CLS] alone."""
        return self.adapter.position_embeddings[: self.adapter.prefix]

    def partition(self, image: Tensor, settings: QLIPConfig | None = None) -> Leaves:
        """Computes the leaves of one image (C, H, W)."""
        return partition_as(settings or self.qlip, image, self.adapter.patch_size, self.native_grid)

    def positions(self, leaves: Leaves, settings: QLIPConfig | None = None) -> Tensor:
        """Computes an image's position embeddings, float32 ([CLS] +) N, D; [CLS] keeps its own.

        Raises:
            ValueError: the settings name another prior than the model's.
        """
        table, config = self.position_table, settings or self.qlip
        if config.interpolation == "mlp" and (self.prior is None or config.mlp not in (None, self.prior_file)):
            raise ValueError(
                f"mlp is {config.mlp!r}, but the model has loaded the prior {self.prior_file!r}; load_prior() loads"
                " that of the model's own settings, change_settings() another; a single call loads none"
            )
        prior = None if self.prior is None else self.prior.to(table.device)
        placed = interpolate_positions(
            table, leaves, config.interpolation, prior, config.leaf_position, config.mlp_residual, config.placement
        )
        return torch.cat([self.cls_position.float(), placed])

    def forward(
        self, images: Tensor | Sequence[Tensor], *, pool: bool = False, settings: QLIPConfig | None = None
    ) -> QLIPOutput:
        """Encodes images of any sizes in one padded batch.

        Args:
            images: float (B, C, H, W), or (C, H, W) each; normalised, sides multiples of the patch size.
            pool: run the whole model and return its pooled output too.
            settings: see the class.

        Returns:
            Features in the model's dtype; an image's do not depend on its batch, to float tolerance.

        Raises:
            TypeError, ValueError: an image is not floating point, or its sides are not whole cells.
        """
        leaves = [self.partition(image, settings) for image in images]
        positions = [self.positions(tree, settings) for tree in leaves]
        return self.encode(images, leaves, positions, pool=pool, settings=settings)

    def encode(
        self,
        images: Tensor | Sequence[Tensor],
        leaves: list[Leaves],
        positions: list[Tensor],
        *,
        pool: bool = False,
        settings: QLIPConfig | None = None,
    ) -> QLIPOutput:
        """Runs `forward` with given leaves and position embeddings, such as those of another prior, or zeros.

        Args:
            images: see `forward`.
            leaves: one tree per image.
            positions: float ([CLS] +) N_i, D each: added to the tokens; `positions` computes the usual ones.
                Gradients flow into them. Split cells, where they are kept, have the usual ones.
            pool: see `forward`.
            settings: see the class.

        Raises:
            ValueError: positions of another number than the tokens, or leaves of another grid than the image.
        """
        size, config, cuts = self.adapter.patch_size, settings or self.qlip, []
        for image, tree in zip(images, leaves, strict=True):
            small = downsize(image, self.native_grid * size) if config.thumbnail else None
            cuts.append(CutImage(tree, extract_patches(image.float(), tree, size, config.geometry), small))
        return self.encode_cut(cuts, positions, pool=pool, settings=settings)

    def encode_cut(
        self,
        cuts: Sequence[CutImage],
        positions: list[Tensor] | None = None,
        *,
        pool: bool = False,
        select: Sequence[int] | None = None,
        settings: QLIPConfig | None = None,
    ) -> QLIPOutput:
        """Encodes images whose leaves were cut out before, for example by another process.

        Args:
            cuts: the images, cut under the same settings, on the model's device.
            positions: see `encode`; None for the usual ones.
            pool: see `forward`.
            select: layers, counted from 0; None is `select_layers`.

        Raises:
            ValueError: no image, another number of channels or positions, a missing thumbnail, or [CLS] sees no leaf.
        """
        layers, config = tuple(self.select_layers if select is None else select), settings or self.qlip
        if pool and self.has_cls and config.keep_split_cells:
            raise ValueError("keep_split_cells is set, so that [CLS] sees no leaf; to pool, set it to false")
        check_cuts(cuts, config.thumbnail, self.adapter.patch_projection.weight.shape[1])
        hidden = self.hidden_states(cuts, {*layers, self.adapter.depth} if pool else layers, positions, settings)
        features = hidden.select(layers, self.adapter.prefix)
        if config.thumbnail:
            small = [native_cut(cut.thumbnail, self.adapter.patch_size) for cut in cuts if cut.thumbnail is not None]
            native = self.hidden_states(small, layers, None, settings).select(layers, self.adapter.prefix)
            features = [torch.cat(pair) for pair in zip(native, features, strict=True)]
        return QLIPOutput(features, [cut.leaves for cut in cuts], self.pool(hidden) if pool else None)

    def hidden_states(
        self,
        cuts: Sequence[CutImage],
        layers: Collection[int],
        positions: list[Tensor] | None = None,
        settings: QLIPConfig | None = None,
    ) -> HiddenStates:
        """Runs the layers up to the highest of `layers`, counted from 0, and keeps those.

        Raises:
            ValueError: positions or patches of another number than the tokens.
        """
        adapter, config = self.adapter, settings or self.qlip
        positions = [self.positions(cut.leaves, settings) for cut in cuts] if positions is None else positions
        lengths = [len(cut.leaves) + adapter.prefix for cut in cuts]
        for cut, added, tokens in zip(cuts, positions, lengths, strict=True):
            if len(added) != tokens or len(cut.patches) != len(cut.leaves):
                raise ValueError(f"{len(cut.patches)} patches and {len(added)} positions for {tokens} tokens")
        splits: list[SplitCells] = []
        if config.keep_split_cells:
            pairs = [add_split_cells(cut, config, self.native_grid) for cut in cuts]
            cuts, splits = [cut for cut, _ in pairs], [split for _, split in pairs]
            more = [self.positions(split.cells, settings)[adapter.prefix :] for split in splits]
            positions = [torch.cat([own, cells.to(own)]) for own, cells in zip(positions, more, strict=True)]
        hidden, valid = pad_ragged(adapter.embed([cut.patches for cut in cuts], positions))
        sizes = [measure_sizes(cut.leaves, self.native_grid, config.geometry) for cut in cuts]
        mask = key_mask(valid, sizes, config.size_bias, adapter.prefix, hidden.dtype)
        mask = hide_tokens(mask, splits, lengths, adapter.prefix, hidden)
        hidden, longest = adapter.pre_norm(hidden), max(lengths)
        kept = {0: hidden[:, :longest]} if 0 in layers else {}
        for number, layer in enumerate(adapter.layers[: max(layers)], start=1):
            hidden = adapter.run(layer, hidden, mask)
            if number in layers:
                kept[number] = hidden[:, :longest]
        valid = torch.arange(longest, device=valid.device) < torch.tensor(lengths, device=valid.device)[:, None]
        return HiddenStates(kept, valid, lengths)

    def pool(self, hidden: HiddenStates) -> Tensor:
        """Computes the model's own pooled output (B, D), image by image so that a head gets no padding.

        Raises:
            ValueError: the model has none.
        """
        if not self.adapter.pools:
            raise ValueError("this model has no pooled output: its vision_use_head, global_pool or pool_type says so")
        last = self.adapter.final_norm(hidden.layers[self.adapter.depth])
        return torch.cat([self.adapter.pool(last[i : i + 1, :length]) for i, length in enumerate(hidden.lengths)])

    def language_span(self, leaves: Leaves, settings: QLIPConfig | None = None) -> ImageSpan:
        """Computes the positions and weights of an image's tokens in the language model."""
        return image_span(settings or self.qlip, leaves, self.native_grid)
