"""The trunk of transformers' LLaVA models under QLIP: it encodes and projects images and puts them in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from qlip.decoder_masks import decoder_mask
from qlip.integrations.attachment import IN_TRUNK, image_sizes_of, refuse_missing
from qlip.integrations.classes import AttachedPreTrainedMixin, check_same_tower, name_arguments


def feature_layers(config: Any) -> int | list[int]:
    """Reads which hidden states of the tower a LLaVA model uses; VipLlava's configuration has its own name for it."""
    name = "vision_feature_layers" if hasattr(config, "vision_feature_layers") else "vision_feature_layer"
    return getattr(config, name)


def select_strategy(has_cls: bool) -> str:
    """Names the `vision_feature_select_strategy` that keeps the patches alone, of a tower with or without [CLS]."""
    return "default" if has_cls else "full"


def take_feature_options(arguments: dict[str, Any]) -> dict[str, Any]:
    """Pops the options of `get_image_features` from a call's arguments."""
    layer, layers = (arguments.pop(name, None) for name in ("vision_feature_layer", "vision_feature_layers"))
    return {
        "vision_feature_layer": layers if layer is None else layer,
        "vision_feature_select_strategy": arguments.pop("vision_feature_select_strategy", None),
    }


class LlavaTrunkMixin(AttachedPreTrainedMixin):
    """Mixin for LlavaModel, LlavaNextModel and VipLlavaModel."""

    config: Any
    vision_tower: Any
    multi_modal_projector: Any
    image_newline: Tensor  # of LlavaNextModel only

    def get_image_features(
        self,
        pixel_values: Any,
        leaf_boxes: Tensor | None = None,
        leaf_grids: Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        image_sizes: Any = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encodes images and projects their tokens.

        Args:
            pixel_values: packed, or whole images; see `Attachment.cut`.
            leaf_boxes: int64 (B, N, 3), of packed images.
            leaf_grids: int64 (B, 2), of packed images.
            vision_feature_layer: by default the configuration's; VipLlava also calls it `vision_feature_layers`.
            image_sizes: int64 (B, 2), heights and widths of LLaVA-NeXT's original images; whole images have their own.
            vision_feature_select_strategy: the one that keeps the patches alone, its default.
            **kwargs: transformers' own; attentions and hidden states are not available.

        Returns:
            `pooler_output`: a list of (M_i, D), in the language model's width; in LLaVA-NeXT with newlines.

        Raises:
            TypeError: the tower was replaced after `attach`.
            ValueError: another strategy, or an output that can't be returned, is requested; or see `Attachment.cut`.
        """
        for name in ("output_attentions", "output_hidden_states"):
            if kwargs.get(name):
                raise ValueError(f"{name} is true; an attached model's get_image_features does not return them")
        attachment = self.attachment
        check_same_tower(self.vision_tower, attachment)
        own = select_strategy(attachment.vision.has_cls)
        if vision_feature_select_strategy not in (None, own):
            raise ValueError(
                f"vision_feature_select_strategy is {vision_feature_select_strategy!r}; leaves have {own!r} alone:"
                " leave it out"
            )
        images = attachment.cut(pixel_values, leaf_boxes, leaf_grids)
        sizes = image_sizes_of(pixel_values) if image_sizes is None and leaf_boxes is None else image_sizes
        orders = attachment.order([image.leaves for image in images], sizes)
        given = kwargs.get("vision_feature_layers") if vision_feature_layer is None else vision_feature_layer
        layers = feature_layers(self.config) if given is None else given
        encoded = attachment.encode(images, attachment.vision.resolve_layers(layers))
        projected = self.multi_modal_projector(torch.cat(encoded))
        features = list(projected.split([len(own) for own in encoded]))
        if orders is not None:
            newline = self.image_newline
            features = [order.gather(own, newline) for order, own in zip(orders, features, strict=True)]
        return BaseModelOutputWithPooling(pooler_output=features)

    def embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, features: Sequence[Tensor]) -> Tensor:
        """Embeds a batch of prompts (B, T, D) with the tokens of its images in place.

        Args:
            input_ids: int64 (B, T), or None if `inputs_embeds` (B, T, D) are given.
            inputs_embeds: of the prompts; by default made from `input_ids`.
            features: (M_i, D) of each image.

        Raises:
            ValueError: image tokens and features differ in number.
        """
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)  # type: ignore[attr-defined]
        joined = torch.cat(list(features)).to(inputs_embeds.device, inputs_embeds.dtype)
        places = self.get_placeholder_mask(input_ids, inputs_embeds, joined)  # type: ignore[attr-defined]
        return inputs_embeds.masked_scatter(places, joined)

    @name_arguments
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Any = None,
        leaf_boxes: Tensor | None = None,
        leaf_grids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        image_sizes: Any = None,
        key_bias: Tensor | None = None,
        is_placed: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Puts the images in place and runs the model's own forward pass.

        Called without the outer model, it needs `position_ids` and `key_bias` from that model's `place_images`.

        Raises:
            ValueError: images come without them.
        """
        options = take_feature_options(kwargs)  # about images only
        images = None if mm_encoder_outputs is None else mm_encoder_outputs.get("image")
        if images is None and pixel_values is not None:
            images = self.get_image_features(pixel_values, leaf_boxes, leaf_grids, image_sizes=image_sizes, **options)
        if images is not None:
            missing = self.attachment.find_missing(kwargs.get("position_ids"), key_bias)
            if is_placed and "key_bias" in missing:  # the model around it has set the mask
                missing.remove("key_bias")
            refuse_missing(IN_TRUNK, missing, type(self).__name__)
            inputs_embeds, input_ids = self.embed(input_ids, inputs_embeds, images.pooler_output), None
        new = inputs_embeds if inputs_embeds is not None else input_ids
        if key_bias is not None and new is not None:
            given, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
            kwargs["attention_mask"] = decoder_mask(given, kwargs.get("position_ids"), key_bias, new, cache, self)
        output = super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)  # type: ignore[misc]
        if images is not None and not isinstance(output, tuple):
            output.image_hidden_states = torch.cat(list(images.pooler_output))
        return output
