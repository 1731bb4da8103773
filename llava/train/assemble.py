"""Builds the tokenizer and the model to train: from a language model and a tower, or from a LLaVA checkpoint."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llava.conversation import Conversation, SeparatorStyle, conv_templates
from llava.model.builder import finish_tower
from llava.model.language_model.common import ImageLanguageModel
from llava.model.loading.checkpoint import Checkpoint
from llava.model.loading.quantization import quantization
from llava.model.loading.tokenizer import load_tokenizer
from llava.model.loading.weights import MODELS, check_complete, grow_vocabulary, load_weights
from llava.model.vision_setup import NEWLINE
from llava.train.arguments import ParsedArguments
from llava.train.lora import add_adapters
from llava.train.parameters import (
    choose_parameters,
    is_deepspeed,
    is_fsdp,
    list_exact_parts,
    loading_in_float32,
    set_dtypes,
)
from llava.train.start import Start, choose_start
from llava.train.tiles import record_tiles

logger = logging.getLogger(__name__)


def assemble(
    args: ParsedArguments, attn_implementation: str | None = None, start: Start | None = None
) -> tuple[PreTrainedTokenizerBase, Any, Conversation]:
    """Builds what is trained: weights loaded, parts frozen as the flags say, adapters added.

    Args:
        args: the command line.
        attn_implementation: of the language model; None is transformers' default.
        start: what `choose_start` has chosen; by default it is called.

    Returns:
        The tokenizer; the model, in peft's wrapper with LoRA; the prompt template.

    Raises:
        FileNotFoundError: no such checkpoint, or it lacks a file.
        ValueError: a checkpoint that cannot be trained, or flags that do not fit it.
    """
    checkpoint, name, vision, had_newline = choose_start(args) if start is None else start
    tokenizer = load_tokenizer(checkpoint.folder)
    model = load_start_model(checkpoint, args, attn_implementation, had_newline)
    add_padding_token(tokenizer, model, name)
    tokenizer.padding_side, tokenizer.model_max_length = "right", args.training.model_max_length
    if vision is not None:
        vision.vision_tower_dtype, vision.cache_dir = choose_tower_dtype(args), args.training.cache_dir
        model.get_model().initialize_vision_modules(vision)
        model.initialize_vision_tokenizer(vision, tokenizer)
    finish_tower(model, checkpoint.folder)
    record_settings(model, args, name, vision)
    record_tiles(model, args)
    tuned = add_adapters(model, args.training) if args.training.lora_enable else model
    choose_parameters(model, args)
    tower = model.get_vision_tower()
    if args.training.bits != 16 and tower is not None:  # the Trainer does not move a quantised model
        tower.to(args.training.device)
        model.get_model().mm_projector.to(args.training.device)
    if args.training.recomputes_activations:
        model.enable_input_require_grads()  # recomputed blocks need an input with a gradient, also with a frozen trunk
    set_dtypes(model, args.training)
    return tokenizer, tuned, conv_templates[name]


def load_start_model(
    checkpoint: Checkpoint, args: ParsedArguments, attn_implementation: str | None, has_own_newline: bool
) -> ImageLanguageModel:
    """Loads the checkpoint's weights, without a newline of tiles if it has none and only the flags ask for one.

    Raises:
        ValueError: some are missing.
    """
    training = args.training
    trains_trunk = not (training.lora_enable or args.model.tune_mm_mlp_adapter or args.model.freeze_backbone)
    options: dict[str, Any] = {"dtype": torch.float32}
    exact: list[str] = []
    if is_deepspeed(training):
        options["dtype"] = training.compute_dtype
    elif not trains_trunk and not is_fsdp(training):  # no float32 copy of a frozen language model
        has_marks = args.model.mm_use_im_start_end or checkpoint.config.mm_use_im_start_end
        options["dtype"], exact = training.compute_dtype, list_exact_parts(args, has_marks)
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if training.bits != 16:
        four_bit, dtype = training.bits == 4, training.compute_dtype
        settings = quantization(four_bit, dtype, training.double_quant, training.quant_type)
        options |= {"quantization_config": settings, "device_map": {"": training.device}}
    with loading_in_float32(MODELS[type(checkpoint.config)], exact):
        hub = {"cache_dir": training.cache_dir}
        model, missing = load_weights(checkpoint, options, hub, choose_tower_dtype(args))
    if NEWLINE in missing and not has_own_newline:
        model.get_model().image_newline = None  # `initialize_vision_modules` draws one
        missing = missing - {NEWLINE}
    check_complete(missing, checkpoint.folder)
    model.config.use_cache = False
    return model


def choose_tower_dtype(args: ParsedArguments) -> torch.dtype | None:
    """Chooses the dtype of a tower that is loaded from separate files; None is the model's."""
    is_exact = args.model.unfreeze_mm_vision_tower and not is_deepspeed(args.training)
    return torch.float32 if is_exact else None


def add_padding_token(tokenizer: PreTrainedTokenizerBase, model: ImageLanguageModel, template: str) -> None:
    """Sets the padding token as LLaVA does: a new one, "[PAD]", for template v0, else the unknown token."""
    if template == "v0":
        if tokenizer.pad_token is None:
            tokenizer.add_special_tokens({"pad_token": "[PAD]"})
            if len(tokenizer) > model.get_input_embeddings().num_embeddings:
                grow_vocabulary(model, len(tokenizer))
    elif tokenizer.unk_token is not None:
        tokenizer.pad_token = tokenizer.unk_token
    elif tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def record_settings(
    model: ImageLanguageModel, args: ParsedArguments, template: str, vision: SimpleNamespace | None
) -> None:
    """Writes into the configuration what LLaVA's config.json says about training, and the template to chat with."""
    config, training = model.config, args.training
    if vision is not None:
        config.mm_use_im_start_end, config.mm_use_im_patch_token = (
            vision.mm_use_im_start_end,
            vision.mm_use_im_patch_token,
        )
        config.mm_patch_merge_type = vision.mm_patch_merge_type
        config.tune_mm_mlp_adapter = args.model.tune_mm_mlp_adapter
        config.freeze_mm_mlp_adapter = training.freeze_mm_mlp_adapter
        config.unfreeze_mm_vision_tower = args.model.unfreeze_mm_vision_tower
        config.mm_projector_lr = training.mm_projector_lr
    config.tokenizer_padding_side = "right"
    config.tokenizer_model_max_length = training.model_max_length
    if conv_templates[template].sep_style is not SeparatorStyle.PLAIN:
        config.conv_mode = template
