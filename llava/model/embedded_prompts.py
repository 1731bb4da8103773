"""Prompts as embeddings: LLaVA's own function that makes them, and what `generate` needs beside them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from llava.model.splice import PaddedBatch
from llava.model.vision.input_checks import check_prompts
from llava.model.vision.mixin import Images, ImageSizes

logger = logging.getLogger(__name__)


class EmbeddedPromptsMixin:
    """Mixed into a model that generates from embeddings, which it makes of prompts and images."""

    config: Any
    splice_images: Callable[..., PaddedBatch]

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        labels: Tensor | None,
        images: Images | None,
        image_sizes: ImageSizes = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Cache | None, Tensor | None, Tensor | None]:
        """Calls `splice_images` under LLaVA's name and order; with images, `position_ids` is not read.

        LLaVA's six values have no place for the weights of leaves in attention (`key_bias` of `forward`). A warning
        is logged where they are lost.

        Returns:
            (None, position_ids, attention_mask, past_key_values, inputs_embeds, labels); without images what was given,
            and None as inputs_embeds.
        """
        if images is None:
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        check_prompts(input_ids, attention_mask, labels, images)
        side = self.config.tokenizer_padding_side
        batch = self.splice_images(input_ids, attention_mask, labels, images, side, image_sizes=image_sizes)
        if batch.weighted:
            logger.warning(
                "prepare_inputs_labels_for_multimodal cannot return the weights of leaves (llm_size_bias,"
                " llm_weight), so answers differ from those of forward and generate; call these with images, or"
                " load the model with qlip={'llm_size_bias': 0.0}"
            )
        new_labels = None if labels is None else batch.labels
        return None, batch.placed.positions, batch.attention_mask, past_key_values, batch.inputs_embeds, new_labels

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> Any:
        """Builds transformers' processors of logits without the prompt's padding.

        transformers' repetition penalty skips as many first tokens of a row as there is padding; with embeddings those
        tokens belong to the answer.
        """
        if kwargs.get("input_ids_seq_length") == 0 and kwargs.get("model_kwargs"):
            known = {name: value for name, value in kwargs["model_kwargs"].items() if name != "attention_mask"}
            kwargs["model_kwargs"] = known
        return super()._get_logits_processor(*args, **kwargs)  # type: ignore[misc]


def check_columns(attention_mask: Tensor | None, cache: Any) -> None:
    """Checks that a batch's tokens keep the columns in which a cache has them.

    Raises:
        ValueError: it has padding that `generate` moves: behind a row's first token, or before that of all rows.
    """
    if attention_mask is None or cache is None or not cache.get_seq_length():
        return
    real = attention_mask != 0
    begun = real.cumsum(1) > 0
    if (begun & ~real).any() or not torch.any(begun[:, 0]):
        raise ValueError(
            "past_key_values were given with an attention_mask that hides tokens behind the first of a row, or the"
            " first of all rows; generate pads prompts again, on their left, where the cache would no longer match."
            " Continue each row apart, or leave past_key_values out"
        )
