"""QLIP inside transformers' LLaVA models: `LlavaForConditionalGeneration`, LLaVA-NeXT and VipLlava.

The mixin for the model around the trunk (`qlip.integrations.llava_trunk`) handles prompts and generation. It calls the
model's own methods for everything but images, positions and the attention bias.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from qlip.decoder_masks import decoder_mask
from qlip.integrations.attachment import (
    IN_EMBEDDINGS,
    NEW_WITH_CACHE,
    NO_PROMPT,
    WITHOUT_LEAVES,
    image_sizes_of,
    list_missing,
    refuse_missing,
)
from qlip.integrations.classes import AttachedPreTrainedMixin, name_arguments
from qlip.integrations.continuation import complete_inputs, note_continuation, padding_mask, read_continuation
from qlip.integrations.llava_trunk import LlavaTrunkMixin, take_feature_options
from qlip.integrations.mixins import ImagePositionsMixin, count_answers, refuse_options
from qlip.language_positions import ImageSpan, Placed, key_bias, place_batch
from qlip.packing import check_pair, unpack_leaves
from qlip.tiles import TokenOrder


class PackedImages(NamedTuple):
    """The images of a batch of prompts, as the attached processor packs them; None where there are none."""

    pixel_values: Any
    leaf_boxes: Tensor | None
    leaf_grids: Tensor | None
    image_sizes: Any


class PromptPositions(NamedTuple):
    """Where the tokens of a batch of prompts are in the language model; None is transformers' own choice."""

    position_ids: Tensor | None
    """int64 (B, T)."""
    key_bias: Tensor | None
    """float (B, K), of the first K keys."""
    end: Tensor | None
    """int64 (B,), the first position after each prompt."""


class LlavaMixin(ImagePositionsMixin, AttachedPreTrainedMixin):
    """Mixin for LlavaForConditionalGeneration, LlavaNextForConditionalGeneration and VipLlava's."""

    config: Any
    model: LlavaTrunkMixin
    dtype: torch.dtype

    def get_image_features(self, pixel_values: Any, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Encodes images; see `LlavaTrunkMixin.get_image_features`."""
        return self.model.get_image_features(pixel_values, *args, **kwargs)

    def place_images(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        leaf_boxes: Tensor,
        leaf_grids: Tensor,
        image_sizes: Tensor | None = None,
    ) -> Placed:
        """Computes the positions of a batch of prompts (docs/METHOD.md, "Positions in the language model").

        Args:
            input_ids: int64 (B, T), an image token per feature.
            attention_mask: (B, T), nonzero on real tokens; by default, and with a mask of another form, on all.
            leaf_boxes: int64 (images, N, 3).
            leaf_grids: int64 (images, 2).
            image_sizes: int64 (images, 2), heights and widths of the original images; of LLaVA-NeXT only.

        Raises:
            ValueError: image tokens and images, or prompts and mask do not match, or LLaVA-NeXT's sizes are missing.
        """
        spans, _ = self.span_images(leaf_boxes, leaf_grids, image_sizes)
        mask = padding_mask(attention_mask)
        real = torch.ones_like(input_ids) if mask is None else mask
        if input_ids.ndim != 2 or real.shape != input_ids.shape:
            shapes = f"input_ids are {tuple(input_ids.shape)}, attention_mask {tuple(real.shape)}"
            raise ValueError(f"{shapes}; both must be (prompts, tokens)")
        return place_batch(input_ids == self.config.image_token_id, real.bool(), spans)

    def span_images(
        self, leaf_boxes: Tensor, leaf_grids: Tensor, image_sizes: Tensor | None = None
    ) -> tuple[list[ImageSpan], list[TokenOrder] | None]:
        """Computes the span of each image, and in LLaVA-NeXT the order of its tokens; see `place_images`."""
        trees = unpack_leaves(leaf_boxes, leaf_grids)
        if (orders := self.attachment.order(trees, image_sizes)) is not None:
            return [order.span for order in orders], orders
        return [self.attachment.vision.language_span(tree) for tree in trees], None

    @name_arguments
    @can_return_tuple
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
        image_sizes: Tensor | None = None,
        key_bias: Tensor | None = None,
        next_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs the model's forward pass.

        Args:
            input_ids: int64 (B, T); as many image tokens as each image has features.
            pixel_values: packed by the attached processor, or whole images (C, H, W).
            attention_mask: (B, past + T); or (B, 1, T, past + T), under which all tokens count, as in transformers.
            position_ids: (B, T); by default computed from the images.
            past_key_values: transformers' cache.
            inputs_embeds: (B, T, D) instead of `input_ids`.
            labels: int64 (B, T).
            logits_to_keep: see transformers.
            mm_encoder_outputs: the output of `get_image_features`, as {"image": ...}.
            leaf_boxes: int64 (images, N, 3), from the attached processor.
            leaf_grids: int64 (images, 2), from the attached processor.
            image_sizes: int64 (images, 2), from the attached processor of LLaVA-NeXT; others do not read it.
            key_bias: float (B, K), added to the attention logits of the first K keys in every layer and head.
            next_positions: int64 (B,), first position after each prompt; used by `generate` only.
            **kwargs: the model's other arguments.

        Raises:
            ValueError: image tokens do not match the images, or embeddings instead of a prompt come without the
                positions and the bias that its images need.
        """
        encoded = (mm_encoder_outputs or {}).get("image") is not None
        given = PackedImages(pixel_values, leaf_boxes, leaf_grids, image_sizes)
        images = self._pack(given, encoded or input_ids is None)
        _, boxes, grids, sizes = images
        new = input_ids if inputs_embeds is None else inputs_embeds
        positions = PromptPositions(position_ids, key_bias, next_positions)
        if boxes is not None and grids is not None:
            positions = self._place(positions, (boxes, grids, sizes), input_ids, attention_mask, past_key_values)
        elif encoded:
            self._refuse_unplaced(position_ids, key_bias)
        elif new is not None and (position_ids is None or not torch.compiler.is_compiling()):
            mask = padding_mask(attention_mask)
            followed = complete_inputs(past_key_values, new, position_ids, key_bias, mask)
            positions = PromptPositions(*followed, next_positions)
        position_ids, key_bias, end = positions
        if new is not None:
            attention_mask = decoder_mask(attention_mask, position_ids, key_bias, new, past_key_values, self)
        if mm_encoder_outputs is not None:
            kwargs["mm_encoder_outputs"] = mm_encoder_outputs
        output = super().forward(  # type: ignore[misc]
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            logits_to_keep=logits_to_keep,
            is_placed=True,
            return_dict=True,
            **images._asdict(),
            **kwargs,
        )
        if position_ids is not None and (boxes is not None or end is not None):
            cache = getattr(output, "past_key_values", None) if past_key_values is None else past_key_values
            note_continuation(cache, position_ids.expand(len(output.logits), -1), key_bias, end)
        return output

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Encodes the images and computes the prompt's positions, then runs transformers' `generate`.

        Raises:
            ValueError: embeddings are given instead of a prompt, image tokens do not match the images, or an option
                does not go with images.
        """
        given = PackedImages(*(kwargs.pop(name, None) for name in PackedImages._fields))
        encoded = any(kwargs.get(name) is not None for name in ("mm_encoder_outputs", "inputs_embeds"))
        pixel_values, boxes, grids, sizes = self._pack(given, encoded)
        layers = take_feature_options(kwargs)
        options = {"generation_config": args[0], **kwargs} if args else kwargs
        if boxes is not None and grids is not None:
            prompt = inputs if inputs is not None else kwargs.pop("input_ids", None)
            if prompt is None:
                raise ValueError(NO_PROMPT)
            refuse_options(self, options, assistants=LlavaMixin)
            placed = self.place_images(prompt, kwargs.get("attention_mask"), boxes, grids, sizes)
            if kwargs.get("key_bias") is None:
                kwargs["key_bias"] = self._bias(placed)
            given_positions = kwargs.get("position_ids")
            if given_positions is None or torch.equal(given_positions.to(placed.positions), placed.positions):
                kwargs |= {"position_ids": placed.positions, "next_positions": placed.end}
            if pixel_values is not None:
                encoder = self.model.get_image_features
                features = encoder(pixel_values, boxes, grids, image_sizes=sizes, **layers).pooler_output
                kwargs["inputs_embeds"] = self.model.embed(prompt, kwargs.get("inputs_embeds"), features)
            inputs = prompt
        else:
            self._continue(inputs, kwargs, count_answers(self, options))
        return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]

    def _continue(self, inputs: Tensor | None, kwargs: dict[str, Any], each: int) -> None:
        """Adds positions and bias to `kwargs` for a prompt that continues a cached prompt with images.

        transformers repeats each row of the prompt `each` times.

        Raises:
            ValueError: encoded images would lose their positions or attention weights.
        """
        prompt, embeds = inputs if inputs is not None else kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        positions, bias = kwargs.get("position_ids"), kwargs.get("key_bias")
        if positions is not None and "key_bias" in kwargs:
            return  # an assistant model gets both from the main model
        has_images = (kwargs.get("mm_encoder_outputs") or {}).get("image") is not None
        if has_images or (embeds is not None and prompt is not None and (prompt == self.config.image_token_id).any()):
            self._refuse_unplaced(positions, bias)
        cache, new = kwargs.get("past_key_values"), prompt if prompt is not None else embeds
        mask = padding_mask(kwargs.get("attention_mask"))
        if new is None or positions is not None or (follows := read_continuation(cache, len(new), mask, each)) is None:
            return
        total = max(new.shape[1], 0 if mask is None else mask.shape[1])  # the whole conversation, or its new tokens
        count = total - follows.length if total > follows.length else new.shape[1]
        known = torch.zeros(len(new), follows.length, dtype=follows.end.dtype, device=follows.end.device)
        kwargs["position_ids"] = torch.cat([known, follows.positions(count, mask)], dim=1)
        kwargs["key_bias"] = follows.bias if bias is None else bias

    def _pack(self, images: PackedImages, encoded: bool) -> PackedImages:
        """Packs whole images, by default with their own sizes; returns packed ones as they are.

        Raises:
            ValueError: leaves come without their grids or, unless the images are `encoded`, without their pixels.
        """
        pixel_values, leaf_boxes, leaf_grids, sizes = images
        check_pair(leaf_boxes, leaf_grids)
        if pixel_values is not None and leaf_boxes is None:
            packed = self.attachment.pack(pixel_values)
            return PackedImages(**packed, image_sizes=image_sizes_of(pixel_values) if sizes is None else sizes)
        if leaf_boxes is not None and pixel_values is None and not encoded:
            raise ValueError(
                f"leaf_boxes of {len(leaf_boxes)} images are given without pixel_values; give all that the attached"
                " processor returns"
            )
        return images

    def _place(
        self,
        given: PromptPositions,
        leaves: tuple[Tensor, Tensor, Any],
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        cache: Cache | None,
    ) -> PromptPositions:
        """Fills in the missing positions of prompts with packed images; `leaves` as in `span_images`.

        Raises:
            ValueError: something is not given, and cannot be computed: there is no prompt, or part of it is cached.
        """
        if input_ids is None:
            spans, _ = self.span_images(*leaves)
            has_positions = any(span.positions is not None for span in spans)
            has_weights = any(span.sizes is not None for span in spans)
            refuse_missing(IN_EMBEDDINGS, list_missing(has_positions, has_weights, given.position_ids, given.key_bias))
            return given
        missing = self.attachment.find_missing(given.position_ids, given.key_bias)
        if not missing:
            return given
        if cache is not None and cache.get_seq_length():
            refuse_missing(NEW_WITH_CACHE, missing)
        placed = self.place_images(input_ids, attention_mask, *leaves)
        if given.position_ids is None:
            given = given._replace(position_ids=placed.positions, end=placed.end)
        return given if given.key_bias is not None else given._replace(key_bias=self._bias(placed))

    def _refuse_unplaced(self, position_ids: Tensor | None, key_bias: Tensor | None) -> None:
        """Raises ValueError if encoded images without their leaves would lose their positions or attention weights."""
        refuse_missing(WITHOUT_LEAVES, self.attachment.find_missing(position_ids, key_bias))

    def _bias(self, placed: Placed) -> Tensor | None:
        return key_bias(placed.sizes, self.config.get_text_config()._attn_implementation)
