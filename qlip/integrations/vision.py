"""QLIP inside vision models: those of transformers, alone or in CLIP and SigLIP, and of timm and open_clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from qlip.integrations.classes import AttachedMixin, AttachedPreTrainedMixin
from qlip.quadtree import Leaves


@dataclass
class QLIPVisionModelOutput(BaseModelOutputWithPooling):
    """The output of an attached vision model: transformers', padded, and the leaves of its tokens."""

    token_mask: Tensor | None = None
    """bool (B, T), True on tokens; `last_hidden_state` is 0 on padding."""

    leaves: list[Leaves] | None = None
    """The trees; in `last_hidden_state` the leaves' tokens follow [CLS], if there is one."""

    def feature_maps(self) -> list[Tensor]:
        """Builds (D, rows, cols) of each image: every cell gets the feature of the leaf that covers it."""
        if self.last_hidden_state is None or self.token_mask is None or self.leaves is None:
            raise ValueError("this output has no hidden states to lay out")
        maps = []
        for hidden, mask, tree in zip(self.last_hidden_state, self.token_mask, self.leaves, strict=True):
            tokens = hidden[mask][-len(tree) :]
            maps.append(tokens[tree.token_map().to(tokens.device)].permute(2, 0, 1))
        return maps


class VisionMixin(AttachedPreTrainedMixin):
    """Mixin for CLIPVisionModel, SiglipVisionModel, Dinov2Model."""

    def forward(
        self,
        pixel_values: Any = None,
        leaf_boxes: Tensor | None = None,
        leaf_grids: Tensor | None = None,
        output_hidden_states: Any = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool = True,
        **kwargs: Any,
    ) -> QLIPVisionModelOutput | tuple[Any, ...]:
        """Encodes images of any sizes.

        Args:
            pixel_values: packed, or whole images; see `Attachment.cut`.
            leaf_boxes: int64 (B, N, 3), of packed images.
            leaf_grids: int64 (B, 2), of packed images.
            output_hidden_states: return all layers too; this and the next two are by default the configuration's.
            output_attentions: must not be true.
            return_dict: False returns a tuple.
            interpolate_pos_encoding: ignored; positions always fit the image.
            **kwargs: transformers' own; ignored.

        Raises:
            ValueError: attentions are requested, there are no images, or the tensors do not match each other.
        """
        config: Any = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return_dict = config.return_dict if return_dict is None else return_dict
        if output_attentions:
            raise ValueError("output_attentions is true; an attached model does not return them")
        if kwargs.get("bool_masked_pos") is not None:
            raise ValueError("bool_masked_pos is given; an attached model has no cells that could be masked")
        if pixel_values is None:
            raise ValueError("pixel_values is None; give the images")
        vision = self.attachment.vision
        images = self.attachment.cut(pixel_values, leaf_boxes, leaf_grids)
        depth = vision.adapter.depth
        layers = range(depth + 1) if output_hidden_states else (depth,)
        hidden = vision.hidden_states(images, layers)
        last = vision.adapter.final_norm(hidden.layers[depth])
        output = QLIPVisionModelOutput(
            last_hidden_state=last.masked_fill(~hidden.valid[..., None], 0),
            pooler_output=vision.pool(hidden) if vision.adapter.pools else None,
            hidden_states=tuple(hidden.layers[number] for number in layers) if output_hidden_states else None,
            token_mask=hidden.valid,
            leaves=[image.leaves for image in images],
        )
        return output.to_tuple() if return_dict is False else output


class ContrastiveMixin(AttachedPreTrainedMixin):
    """Mixin for CLIPModel and SiglipModel, whose vision model is attached: keeps leaves from the text model."""

    def get_text_features(
        self, *args: Any, leaf_boxes: Tensor | None = None, leaf_grids: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Computes the model's own text features."""
        return super().get_text_features(*args, **kwargs)  # type: ignore[misc]


class LibraryVisionMixin(AttachedMixin):
    """Mixin for the VisionTransformer of timm or open_clip."""

    training: bool

    def forward(
        self,
        x: Any = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        images: Any = None,
        pixel_values: Any = None,
        leaf_boxes: Tensor | None = None,
        leaf_grids: Tensor | None = None,
    ) -> Tensor:
        """Computes (B, D), the output of the model itself: an embedding or its head's logits.

        Args:
            x: images (B, C, H, W), or (C, H, W) each; normalised, sides whole cells.
            attn_mask: must be None; this and the next are timm's.
            is_causal: must be false.
            images: another name of `x`.
            pixel_values: another one, and with the next two what the attached processor returns; see `Attachment.cut`.
            leaf_boxes: int64 (B, N, 3), of packed images.
            leaf_grids: int64 (B, 2), of packed images.

        Raises:
            TypeError: no images, or under several names.
            ValueError: a mask is given, or a model in training leaves out patches.
        """
        given = [value for value in (x, images, pixel_values) if value is not None]
        if len(given) != 1:
            raise TypeError(
                f"images are {'given twice' if given else 'missing'}; give them once, as x, images or pixel_values"
            )
        if attn_mask is not None or is_causal:
            mask = "is_causal is true" if attn_mask is None else "attn_mask is given"
            raise ValueError(f"{mask}; an attached model makes its own mask, as its tokens are leaves; leave it out")
        vision = self.attachment.vision
        if self.training and vision.adapter.patch_dropout:
            raise ValueError(
                f"the model leaves out {vision.adapter.patch_dropout:g} of its patches in training, an attached model"
                " none; set its patch_drop (timm) or patch_dropout (open_clip) to torch.nn.Identity()"
            )
        cuts = self.attachment.cut(given[0], leaf_boxes, leaf_grids)
        return vision.pool(vision.hidden_states(cuts, (vision.adapter.depth,)))
