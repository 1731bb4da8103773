"""QLIP inside transformers' LLaVA models: `LlavaForConditionalGeneration`, LLaVA-NeXT and VipLlava.

Two mixins: one for the trunk, which encodes and projects images, and one for the model around it, which handles prompts
and generation. They call the model's own methods for everything but images, positions and the attention bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from qlip.decoder_masks import decoder_mask
from qlip.integrations.attachment import AttachedPreTrainedMixin
from qlip.integrations.mixins import ImagePositionsMixin
from qlip.language_positions import ImageSpan, Placed, key_bias, place_batch
from qlip.packing import check_pair, unpack_leaves

NO_PROMPT = "images were given without input_ids: their places can't be found in embeddings"


class LlavaTrunkMixin(AttachedPreTrainedMixin):
    """Mixin for LlavaModel, LlavaNextModel and VipLlavaModel."""

    config: Any
    vision_tower: Any
    multi_modal_projector: Any

    def get_image_features(
        self,
        pixel_values: Any,
        leaf_boxes: Tensor | None = None,
        leaf_grids: Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encodes images and projects their tokens.

        Args:
            pixel_values: packed, or whole images; see `Attachment.cut`.
            leaf_boxes: int64 (B, N, 3), of packed images.
            leaf_grids: int64 (B, 2), of packed images.
            vision_feature_layer: by default the configuration's.
            **kwargs: transformers' own; ignored.

        Returns:
            `pooler_output`: a list of (M_i, D), in the language model's width.
        """
        vision = self.attachment.vision
        images = self.attachment.cut(pixel_values, leaf_boxes, leaf_grids)
        select = None if vision_feature_layer is None else vision.resolve_layers(vision_feature_layer)
        output = vision.encode_cut(images, select=select)
        projected = self.multi_modal_projector(torch.cat(output.features))
        features = list(projected.split([len(feature) for feature in output.features]))
        if (newline := getattr(self, "image_newline", None)) is not None:
            features = [torch.cat([feature, newline[None].to(feature)]) for feature in features]
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

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Any = None,
        leaf_boxes: Tensor | None = None,
        leaf_grids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Puts the images in place and runs the model's own forward pass."""
        images = None if mm_encoder_outputs is None else mm_encoder_outputs.get("image")
        if images is None and pixel_values is not None:
            images = self.get_image_features(pixel_values, leaf_boxes, leaf_grids, vision_feature_layer)
        if images is not None:
            if kwargs.get("position_ids") is None and self.attachment.vision.qlip.llm_positions == "raster":
                raise ValueError(
                    f"{type(self).__name__} is given images without position_ids: call the model around it, or give"
                    " the positions from its place_images"
                )
            inputs_embeds, input_ids = self.embed(input_ids, inputs_embeds, images.pooler_output), None
        for name in ("vision_feature_select_strategy", "image_sizes"):  # from the model around it, about images only
            kwargs.pop(name, None)
        output = super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)  # type: ignore[misc]
        if images is not None and not isinstance(output, tuple):
            output.image_hidden_states = torch.cat(list(images.pooler_output))
        return output


class LlavaMixin(ImagePositionsMixin, AttachedPreTrainedMixin):
    """Mixin for LlavaForConditionalGeneration, LlavaNextForConditionalGeneration and VipLlava's."""

    config: Any
    model: LlavaTrunkMixin
    dtype: torch.dtype

    def get_image_features(self, pixel_values: Any, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Encodes images; see `LlavaTrunkMixin.get_image_features`."""
        return self.model.get_image_features(pixel_values, *args, **kwargs)

    def place_images(
        self, input_ids: Tensor, attention_mask: Tensor | None, leaf_boxes: Tensor, leaf_grids: Tensor
    ) -> Placed:
        """Computes the positions of a batch of prompts (docs/METHOD.md, "Positions in the language model").

        Args:
            input_ids: int64 (B, T), an image token per feature.
            attention_mask: (B, T), nonzero on real tokens; by default on all.
            leaf_boxes: int64 (images, N, 3).
            leaf_grids: int64 (images, 2).

        Raises:
            ValueError: image tokens and images do not match.
        """
        spans = self._spans(leaf_boxes, leaf_grids)
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return place_batch(input_ids == self.config.image_token_id, real.bool(), spans)

    def language_span(self, leaves: Any) -> ImageSpan:
        """Computes the span of one image, with LLaVA-NeXT's newline token at its end."""
        span = self.attachment.vision.language_span(leaves)
        return span.and_one_more() if hasattr(self.model, "image_newline") else span

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Any = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: dict[str, Any] | None = None,
        *,
        leaf_boxes: Tensor | None = None,
        leaf_grids: Tensor | None = None,
        key_bias: Tensor | None = None,
        next_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs the model's forward pass.

        Args:
            input_ids: int64 (B, T); as many image tokens as each image has features.
            pixel_values: packed by the attached processor, or whole images (C, H, W).
            attention_mask: (B, past + T).
            position_ids: (B, T); by default computed from the images.
            past_key_values: transformers' cache.
            inputs_embeds: (B, T, D) instead of `input_ids`.
            labels: int64 (B, T).
            logits_to_keep: see transformers.
            mm_encoder_outputs: the output of `get_image_features`, as {"image": ...}.
            leaf_boxes: int64 (images, N, 3), from the attached processor.
            leaf_grids: int64 (images, 2), from the attached processor.
            key_bias: float (B, K), added to the attention logits of the first K keys in every layer and head.
            next_positions: int64 (B,), first position after each prompt; used by `generate` only.
            **kwargs: the model's other arguments.

        Raises:
            ValueError: image tokens do not match the images, or embeddings instead of a prompt come without the
                positions and the bias that its images need.
        """
        encoded = (mm_encoder_outputs or {}).get("image") is not None
        packed = self._pack(pixel_values, leaf_boxes, leaf_grids, encoded or input_ids is None)
        pixel_values, leaf_boxes, leaf_grids = packed
        if encoded and leaf_boxes is None and position_ids is None:
            self._check_lost()
        new = inputs_embeds if inputs_embeds is not None else input_ids
        if leaf_boxes is not None and leaf_grids is not None:
            if input_ids is None:
                self._check_placed(position_ids, key_bias, leaf_boxes, leaf_grids)
            else:
                placed = self.place_images(input_ids, attention_mask, leaf_boxes, leaf_grids)
                position_ids = placed.positions if position_ids is None else position_ids
                key_bias = self._bias(placed) if key_bias is None else key_bias
        if new is not None:
            attention_mask = decoder_mask(attention_mask, position_ids, key_bias, new, past_key_values, self)
        if mm_encoder_outputs is not None:
            kwargs["mm_encoder_outputs"] = mm_encoder_outputs
        return super().forward(  # type: ignore[misc]
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            logits_to_keep=logits_to_keep,
            leaf_boxes=leaf_boxes,
            leaf_grids=leaf_grids,
            **kwargs,
        )

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Encodes the images and computes the prompt's positions, then runs transformers' `generate`.

        Raises:
            ValueError: embeddings are given instead of a prompt, or image tokens do not match the images.
        """
        pixel_values = kwargs.pop("pixel_values", None)
        boxes, grids = kwargs.pop("leaf_boxes", None), kwargs.pop("leaf_grids", None)
        encoded = any(kwargs.get(name) is not None for name in ("mm_encoder_outputs", "inputs_embeds"))
        pixel_values, boxes, grids = self._pack(pixel_values, boxes, grids, encoded)
        if boxes is not None and grids is not None:
            prompt = inputs if inputs is not None else kwargs.pop("input_ids", None)
            if prompt is None:
                raise ValueError(NO_PROMPT)
            placed = self.place_images(prompt, kwargs.get("attention_mask"), boxes, grids)
            kwargs["key_bias"] = self._bias(placed)
            if kwargs.get("position_ids") is None:
                kwargs |= {"position_ids": placed.positions, "next_positions": placed.end}
            if pixel_values is not None:
                features = self.model.get_image_features(pixel_values, boxes, grids).pooler_output
                kwargs["inputs_embeds"] = self.model.embed(prompt, None, features)
            inputs = prompt
        return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]

    def _spans(self, leaf_boxes: Tensor, leaf_grids: Tensor) -> list[ImageSpan]:
        return [self.language_span(tree) for tree in unpack_leaves(leaf_boxes, leaf_grids)]

    def _pack(
        self, pixel_values: Any, leaf_boxes: Tensor | None, leaf_grids: Tensor | None, encoded: bool
    ) -> tuple[Any, Tensor | None, Tensor | None]:
        """Packs whole images; returns packed ones as they are.

        Raises:
            ValueError: leaves come without their grids or, unless the images are `encoded`, without their pixels.
        """
        check_pair(leaf_boxes, leaf_grids)
        if pixel_values is not None and leaf_boxes is None:
            packed = self.attachment.pack(pixel_values)
            return packed["pixel_values"], packed["leaf_boxes"], packed["leaf_grids"]
        if leaf_boxes is not None and pixel_values is None and not encoded:
            raise ValueError(
                f"leaf_boxes of {len(leaf_boxes)} images are given without pixel_values; give all that the attached"
                " processor returns"
            )
        return pixel_values, leaf_boxes, leaf_grids

    def _check_lost(self) -> None:
        """Raises ValueError if encoded images without their leaves would lose their positions or attention weights."""
        settings = self.attachment.vision.qlip
        if settings.llm_positions == "raster" or settings.biases_language_model:
            raise ValueError(
                "encoded images are given without leaf_boxes and leaf_grids; give both, or position_ids and key_bias"
                " (see place_images)"
            )

    def _check_placed(
        self, position_ids: Tensor | None, key_bias: Tensor | None, leaf_boxes: Tensor, leaf_grids: Tensor
    ) -> None:
        """Raises ValueError if a prompt of embeddings would lose its images' positions or attention weights."""
        spans = self._spans(leaf_boxes, leaf_grids)
        lost = ["position_ids"] if position_ids is None and any(span.positions is not None for span in spans) else []
        lost += ["key_bias"] if key_bias is None and any(span.sizes is not None for span in spans) else []
        if lost:
            raise ValueError(f"{NO_PROMPT}; give {' and '.join(lost)} (see place_images)")

    def _bias(self, placed: Placed) -> Tensor | None:
        return key_bias(placed.sizes, self.config.get_text_config()._attn_implementation)
