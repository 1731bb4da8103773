"""LLaVA's model, mixins over transformers': encode images, project them, splice them into a prompt, generate."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_outputs import CausalLMOutputWithPast

from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import unpad_image as unpad_image  # LLaVA's clients look for it here
from llava.model.config import MultimodalConfig
from llava.model.embedded_prompts import EmbeddedPromptsMixin, check_columns
from llava.model.generation_settings import check_max_length, savable_generation
from llava.model.guidance import add_negative_prompt
from llava.model.loading.checkpoint_tower import complete_arguments
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.packing import attend_within_prompts, read_packs
from llava.model.splice import (
    PaddedBatch,
    bias_keys,
    check_spans,
    collate,
    holds_images,
    share_images,
    splice_row,
    stack_embeds,
    truncate,
    warn_beyond_context,
)
from llava.model.text_only import embed_text
from llava.model.vision.anyres import has_newline, make_newline
from llava.model.vision.input_checks import check_prompts, check_tokens
from llava.model.vision.mixin import ImageEncodingMixin, Images, ImageSizes
from llava.model.vision.question_budget import refine_pixels
from llava.model.vision_setup import initialize_vision_modules, initialize_vision_tokenizer
from qlip.decoder_masks import decoder_mask
from qlip.integrations.continuation import complete_inputs, note_continuation, padding_mask
from qlip.integrations.mixins import ImagePositionsMixin, refuse_options

TOWER_NAMES = {r"vision_tower\.vision_tower\.vision_model\.": "vision_tower.vision_tower."}
"""LLaVA's prefix of the tower's weights -> that of today's transformers."""

MPT_NAMES = {r"^transformer\.": "model.", **TOWER_NAMES}
"""Prefixes in MPT's files, which call the trunk "transformer" -> those of today's transformers."""


class LlavaMetaModel(nn.Module):
    """Adds a vision tower and a projector to a language model's trunk."""

    config: MultimodalConfig

    def __init__(self, config: MultimodalConfig) -> None:
        super().__init__(config)
        if config.has_tower:
            self.vision_tower = build_vision_tower(config, delay_load=True)
            if config.mm_hidden_size is None and not self.vision_tower.is_loaded:
                raise ValueError("mm_hidden_size is not set, and no tower states it; set it in config.json")
            config.mm_hidden_size = config.mm_hidden_size or self.vision_tower.hidden_size
            self.mm_projector = build_vision_projector(config)
            if has_newline(config):
                self.image_newline = make_newline(config)
            # First in order: a device map fills the devices in order, and a tower or projector must not be offloaded.
            for name in [name for name in self._modules if name not in ("vision_tower", "mm_projector")]:
                self._modules[name] = self._modules.pop(name)

    def get_vision_tower(self) -> VisionTower | None:
        """The tower; None for a text-only model."""
        tower = getattr(self, "vision_tower", None)
        return tower[0] if isinstance(tower, list) else tower

    def initialize_vision_modules(self, model_args: Any, fsdp: Any = None) -> None:
        """Adds a tower and a projector to a text-only model: see `llava.model.vision_setup`."""
        initialize_vision_modules(self, model_args, fsdp)


class LlavaMetaForCausalLM(EmbeddedPromptsMixin, ImageEncodingMixin, ImagePositionsMixin, GenerationMixin):
    """Adds images to the forward pass and generation of a causal language model whose trunk has a `LlavaMetaModel`."""

    weight_names: ClassVar[dict[str, str]] = TOWER_NAMES
    """Regular expressions on the names of weights in LLaVA's files -> ours."""

    def initialize_vision_tokenizer(self, model_args: Any, tokenizer: Any) -> None:
        """Adds the image tokens that training asks for: see `llava.model.vision_setup`."""
        initialize_vision_tokenizer(self, model_args, tokenizer)

    def splice_images(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        images: Images | None,
        padding_side: str,
        packs: Tensor | None = None,
        image_sizes: ImageSizes = None,
    ) -> PaddedBatch:
        """Embeds a batch of prompts with their images in place, padded on `padding_side`.

        Args:
            input_ids: int64 (B, L), IMAGE_TOKEN_INDEX where an image goes.
            attention_mask: (B, L), nonzero on real tokens; by default all are.
            labels: int64 (B, L) or None. With labels, text after the last image is cut down to
                `tokenizer_model_max_length`.
            images: one per placeholder, in order over the whole batch; of more, see `share_images`.
            padding_side: "right" or "left".
            packs, image_sizes: see `forward`.

        Raises:
            ValueError: there is no token, there are too few images, or one would be cut; or see `encode_tokens`.
        """
        # Copied to the CPU once: reading a GPU's values would synchronize several times for every row.
        ids = input_ids.cpu()
        real = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.cpu().bool()
        rows = [row[keep] for row, keep in zip(ids, real, strict=True)]
        check_tokens(rows)
        shares = share_images(rows, 0 if images is None else len(images))
        shown = [share if IMAGE_TOKEN_INDEX in row else share[:0] for row, share in zip(rows, shares, strict=True)]
        # In training the others are encoded too: every process must use its projector, or the rest would wait for it.
        needed = shares if self.training and torch.is_grad_enabled() else shown
        tokens = self.encode_some(images, image_sizes, needed)
        check_spans(self.config, tokens.values())
        text = torch.cat(rows)
        # Once for the batch: under ZeRO-3 all processes gather the table together, and their batches differ in rows.
        alone = not tokens and (labels is not None or self.training)
        embedded = embed_text(self, text.masked_fill(text == IMAGE_TOKEN_INDEX, 0).to(input_ids.device), alone)
        # Images that are not shown are among them, for the gradient's path to the projector.
        embeds, places = stack_embeds(embedded, list(tokens.values()))
        stacked = dict(zip(tokens, places, strict=True))
        begins = list(accumulate(map(len, rows), initial=0))[:-1]
        own = [[stacked[i] for i in share] for share in shown]
        wanted: list[Any] = [None] * len(rows)
        if labels is not None:
            wanted = [row[keep] for row, keep in zip(labels.cpu(), real, strict=True)]
        spliced = [splice_row(*parts) for parts in zip(rows, begins, own, wanted, strict=True)]
        if labels is not None and (limit := self.config.tokenizer_model_max_length) is not None:
            spliced = [truncate(row, limit) for row in spliced]
        numbers = None if packs is None else read_packs(packs, len(rows), self.config._attn_implementation)
        return collate(spliced, embeds, padding_side, numbers)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        images: Images | None = None,
        image_sizes: ImageSizes = None,
        key_bias: Tensor | None = None,
        next_positions: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        packs: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Runs the language model; with `input_ids` and `images` the images are spliced in first.

        Text may follow from the cache that it returns, with `attention_mask` over all keys where there is padding.

        Args:
            images: one per <image> in `input_ids`, in order over the whole batch: a tensor (N, C, H, W), a sequence of
                (C, H, W) or of tiles (1 + T, C, H, W), or the output of `encode_tokens`. Logits then count the images'
                tokens. If there are more images than <image>, a prompt without <image> skips one, and the rest is
                ignored: see `share_images`. With budget "question" the text without labels decides on pixels, as in
                `generate`; without such text, or with gradients, as in training, the scores do.
            image_sizes: (width, height) of each image before it was prepared; needed where tiles are joined (anyres).
            key_bias: float (B, K), added to the attention logits of the first K keys in every layer and head.
            next_positions: int64 (B,), where generation continues after the prompt; used by `generate` only.
            logits_to_keep: compute logits of this many last tokens only, 0 for all. `generate` asks for 1 where it
                finds this parameter, else a prompt's logits over the whole vocabulary would take gigabytes.
            packs: int64 (B,), for training: prompts of equal numbers share a row of the logits, each with its own
                positions and attending to itself only. FlashAttention puts all prompts in one row.
        """
        if input_ids is None or inputs_embeds is not None or (past_key_values and past_key_values.get_seq_length()):
            if images is not None or packs is not None:
                raise ValueError("images or packs were given with inputs_embeds, or with a cache that they continue")
        elif packs is not None or holds_images(input_ids, images):
            check_prompts(input_ids, attention_mask, labels, images)
            side = self.config.tokenizer_padding_side
            if not torch.is_grad_enabled():
                images = refine_pixels(self, input_ids, attention_mask, images, labels=labels, needs_question=False)
            batch = self.splice_images(input_ids, attention_mask, labels, images, side, packs, image_sizes)
            input_ids, inputs_embeds, key_bias = None, batch.inputs_embeds, bias_keys(batch, self.config)
            attention_mask, position_ids = batch.attention_mask, batch.placed.positions
            next_positions = batch.placed.end if batch.prompts is None else None
            labels = None if labels is None else batch.labels
            if batch.prompts is not None:
                attention_mask, borders = attend_within_prompts(batch.prompts, self.config, self.dtype)
                kwargs.update(borders)
        elif labels is not None or self.training:
            inputs_embeds, input_ids = embed_text(self, input_ids, alone=True), None
        if (new := inputs_embeds if inputs_embeds is not None else input_ids) is None:
            raise ValueError("neither input_ids nor inputs_embeds were given")
        if position_ids is None or not torch.compiler.is_compiling():
            known = padding_mask(attention_mask)
            position_ids, key_bias = complete_inputs(past_key_values, new, position_ids, key_bias, known)
        attention_mask = decoder_mask(attention_mask, position_ids, key_bias, new, past_key_values, self)
        output = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
        if next_positions is not None and position_ids is not None and not self.training:
            cache = getattr(output, "past_key_values", None) if past_key_values is None else past_key_values
            note_continuation(cache, position_ids.expand(len(new), -1), key_bias, next_positions)
        return output

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        images: Images | None = None,
        image_sizes: ImageSizes = None,
        attention_mask: Tensor | None = None,
        position_ids: None = None,
        input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generates answers to a batch of prompts about their images; a row does not depend on the others.

        Args:
            inputs: int64 (B, L), IMAGE_TOKEN_INDEX where an image goes; `input_ids` is the same.
            images: one per placeholder, in order over the whole batch; of more, see `share_images`. With budget
                "question" all text after an image decides on it; `ChatEngine` knows the newest question.
            image_sizes: see `forward`.
            position_ids: for LLaVA's callers; must be None, positions follow from the images.
            attention_mask: (B, L), nonzero on real tokens.
            **kwargs: transformers' generation arguments.

        Returns:
            The output of transformers' `generate`, new tokens only.

        Raises:
            TypeError, ValueError: see `check_prompts`.
            ValueError: no prompt, embeddings instead of one, too few images, or an option that images do not go with.
        """
        prompt = inputs if inputs is not None else input_ids
        if "packs" in kwargs:
            raise ValueError("generate takes no packs: they are for training; it pads the prompts of a batch itself")
        refuse_options(self, kwargs)
        if prompt is None or position_ids is not None or "inputs_embeds" in kwargs:
            raise ValueError("generate takes input_ids and images; inputs_embeds and position_ids are made from them")
        check_prompts(prompt, attention_mask, images=images)
        check_columns(attention_mask, kwargs.get("past_key_values"))
        images = refine_pixels(self, prompt, attention_mask, images)
        batch = self.splice_images(prompt, attention_mask, None, images, "left", image_sizes=image_sizes)
        warn_beyond_context(batch, self.config)
        check_max_length(batch.inputs_embeds.shape[1], kwargs, self.generation_config)
        return super().generate(
            inputs_embeds=batch.inputs_embeds,
            attention_mask=batch.attention_mask,
            position_ids=batch.placed.positions,
            key_bias=bias_keys(batch, self.config),
            next_positions=batch.placed.end,
            **add_negative_prompt(kwargs, self.generation_config, prompt, attention_mask),
        )

    @classmethod
    def from_pretrained(
        cls, *args: Any, key_mapping: dict[str, str] | None = None, inspected: bool = False, **kwargs: Any
    ) -> Any:
        """Loads as transformers does, from LLaVA's parameter names too. Most callers want `load_pretrained_model`.

        Args:
            *args: transformers' own, as `kwargs`.
            key_mapping: regular expressions on the names of weights -> ours.
            inspected: `config` names the tower that the checkpoint holds, as `loading.checkpoint.inspect` has found it.
        """
        names = cls.weight_names if key_mapping is None else key_mapping
        if not inspected:
            path = args[0] if args else kwargs.get("pretrained_model_name_or_path")
            kwargs = complete_arguments(cls, path, kwargs)
        return super().from_pretrained(*args, key_mapping=names, **kwargs)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Writes a checkpoint with LLaVA's parameter names, the tower and its image processor included."""
        tower = self.get_model()._modules.get("vision_tower")  # not one in a list, whose weights are not written
        if tower is not None and tower.is_loaded:
            self.config.mm_vision_config = tower.config.to_dict()
            tower.save_files(Path(save_directory))
        self._weight_conversions = [WeightRenaming(*names) for names in self.weight_names.items()]
        with savable_generation(self):
            super().save_pretrained(save_directory, **kwargs)
