"""Builds the tokenizer and the model to train: from a language model and a tower, or from a LLaVA checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llava.conversation import Conversation, SeparatorStyle, conv_templates
from llava.model.builder import finish_tower
from llava.model.config import ImageLanguageConfig
from llava.model.language_model.common import ImageLanguageModel
from llava.model.loading.chat_template import default_template
from llava.model.loading.checkpoint import Checkpoint, inspect
from llava.model.loading.folder import local_folder
from llava.model.loading.quantization import quantization
from llava.model.loading.tokenizer import load_tokenizer
from llava.model.loading.weights import check_complete, grow_vocabulary, load_weights
from llava.model.multimodal_encoder.builder import override_flag
from llava.model.multimodal_encoder.pretrained import drops_last_layer, vision_config
from llava.model.vision.anyres import has_newline
from llava.model.vision_setup import NEWLINE
from llava.train.arguments import ParsedArguments, is_supported_aspect_ratio
from llava.train.lora import add_adapters
from llava.train.parameters import choose_parameters, is_deepspeed, is_fsdp, set_dtypes
from llava.train.tiles import choose_tiles, keep_aspect_ratio, record_tiles

logger = logging.getLogger(__name__)

UNPADDED, DEFAULT_TEMPLATE = "v0.5", "vicuna_v1"
"""LLaVA's version that pads with <unk>, which is not a template, and the template that it uses."""
VISION_FIELDS = (
    "mm_vision_select_layer",
    "mm_vision_select_feature",
    "mm_projector_type",
    "mm_patch_merge_type",
    "mm_use_im_start_end",
    "mm_use_im_patch_token",
)
"""Flags whose values come from a LLaVA checkpoint's own configuration where the command line lacks them."""


def assemble(
    args: ParsedArguments, attn_implementation: str | None = None
) -> tuple[PreTrainedTokenizerBase, Any, Conversation]:
    """Builds what is trained: weights loaded, parts frozen as the flags say, adapters added.

    Args:
        args: the command line.
        attn_implementation: of the language model; None is transformers' default.

    Returns:
        The tokenizer; the model, in peft's wrapper with LoRA; the prompt template.

    Raises:
        FileNotFoundError: no such checkpoint, or it lacks a file.
        ValueError: a checkpoint that cannot be trained, or flags that do not fit it.
    """
    checkpoint = find_start_checkpoint(args)
    config = checkpoint.config
    had_newline = has_newline(config)
    name = resolve_version(args)
    keep_aspect_ratio(args, config)
    warn_of_defaults(args, config, name)
    vision = choose_vision(args, config)
    choose_tiles(args, config, vision)
    tokenizer = load_tokenizer(checkpoint.folder)
    model = load_start_model(checkpoint, args, attn_implementation, had_newline)
    add_padding_token(tokenizer, model, name)
    tokenizer.padding_side, tokenizer.model_max_length = "right", args.training.model_max_length
    if vision is not None:
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


def find_start_checkpoint(args: ParsedArguments) -> Checkpoint:
    """Finds and inspects the checkpoint that training starts from.

    Raises:
        ValueError: it is neither a language model nor a whole LLaVA checkpoint.
    """
    path, cache = str(args.model.model_name_or_path), args.training.cache_dir
    checkpoint = inspect(local_folder(path, cache_dir=cache), cache_dir=cache)
    if checkpoint.kind != "full":
        way_out = "merge it by scripts/merge_lora_weights.py" if checkpoint.kind == "lora" else (
            "give its language model, and it as --pretrain_mm_mlp_adapter"
        )  # fmt: skip
        raise ValueError(f"--model_name_or_path {path} is a {checkpoint.kind} checkpoint, not a whole model; {way_out}")
    if not checkpoint.config.has_tower and args.model.vision_tower is None:
        for name in ("tune_mm_mlp_adapter", "pretrain_mm_mlp_adapter", "unfreeze_mm_vision_tower", "qlip"):
            if getattr(args.model, name):
                raise ValueError(f"--{name} needs a vision tower, which {path} does not have; give --vision_tower")
    return checkpoint


def resolve_version(args: ParsedArguments) -> str:
    """Finds the prompt template that `--version` names.

    Raises:
        ValueError: there is none of that name; LLaVA would silently train on Vicuna's.
    """
    version = str(args.model.version)
    if version == UNPADDED:
        return DEFAULT_TEMPLATE
    if version not in conv_templates:
        raise ValueError(f"--version {version!r} is not a prompt template; known: {', '.join(conv_templates)}")
    return version


def warn_of_defaults(args: ParsedArguments, config: ImageLanguageConfig, template: str) -> None:
    """Warns where a flag's default replaces what a LLaVA checkpoint was trained with."""
    own = config.conv_mode or default_template(config)
    aspect = config.image_aspect_ratio if is_supported_aspect_ratio(config.image_aspect_ratio) else "square"
    length = config.tokenizer_model_max_length or args.training.model_max_length
    for flag, chosen, before, same in (
        ("version", template, own, conv_templates.get(own) == conv_templates[template]),
        ("image_aspect_ratio", args.data.image_aspect_ratio, aspect, args.data.image_aspect_ratio == aspect),
        ("model_max_length", args.training.model_max_length, length, args.training.model_max_length == length),
    ):
        if config.has_tower and flag not in args.given and not same:
            logger.warning("--%s is not given: its default %s replaces the checkpoint's %s", flag, chosen, before)


def choose_vision(args: ParsedArguments, config: ImageLanguageConfig) -> SimpleNamespace | None:
    """Chooses the tower's and projector's settings, and updates the configuration before weights are loaded.

    Args:
        args: the command line; its flags win over a LLaVA checkpoint's settings.
        config: of the checkpoint; changed in place.

    Returns:
        What LLaVA's `initialize_vision_modules` reads; None for a text-only model.

    Raises:
        ValueError: another projector than the checkpoint's.
    """
    flag = args.model.qlip
    if isinstance(flag, dict) and flag.get("mlp"):
        flag = {**flag, "mlp": str(Path(flag["mlp"]).absolute())}
    override_flag(config, flag)
    if not config.has_tower and args.model.vision_tower is None:
        return None
    tower = args.model.vision_tower or config.mm_vision_tower
    if config.has_tower:
        chosen = _choose_vision_fields(args, config)
        _update_vision(config, chosen, tower, args.model.model_name_or_path)
    else:
        chosen = {name: getattr(args.model, name) for name in VISION_FIELDS}
    return SimpleNamespace(
        vision_tower=tower,
        qlip=config.qlip,
        pretrain_mm_mlp_adapter=args.model.pretrain_mm_mlp_adapter,
        tune_mm_mlp_adapter=args.model.tune_mm_mlp_adapter,
        **chosen,
    )


def _choose_vision_fields(args: ParsedArguments, config: ImageLanguageConfig) -> dict[str, Any]:
    """Chooses the settings of the tower and the projector that a checkpoint has: its own, but for given flags.

    Raises:
        ValueError: another projector than the checkpoint's.
    """
    chosen = {name: getattr(args.model if name in args.given else config, name) for name in VISION_FIELDS}
    inside = config.mm_vision_config
    if inside is not None and chosen["mm_vision_select_layer"] == -2 and drops_last_layer(vision_config(inside)):
        chosen["mm_vision_select_layer"] = -1  # LLaVA-NeXT's commands count the layer that its checkpoints lack
    if chosen["mm_projector_type"] != config.mm_projector_type:
        raise ValueError(
            f"--mm_projector_type is {chosen['mm_projector_type']!r}, but {args.model.model_name_or_path} has a"
            f" {config.mm_projector_type!r} projector; leave the flag out"
        )
    return chosen


def _update_vision(
    config: ImageLanguageConfig, chosen: Mapping[str, Any], tower: str | None, model: str | None
) -> None:
    """Writes the settings into a configuration; a checkpoint that holds its own tower keeps it."""
    if config.mm_vision_config is None:
        config.mm_vision_tower = tower
    elif tower != config.mm_vision_tower:
        logger.warning("--vision_tower %s is not loaded: %s holds its own tower", tower, model)
    for name, value in chosen.items():
        setattr(config, name, value)


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
    if is_deepspeed(training) or (not trains_trunk and not is_fsdp(training)):
        options["dtype"] = training.compute_dtype
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if training.bits != 16:
        four_bit, dtype = training.bits == 4, training.compute_dtype
        settings = quantization(four_bit, dtype, training.double_quant, training.quant_type)
        options |= {"quantization_config": settings, "device_map": {"": training.device}}
    model, missing = load_weights(checkpoint, options, {"cache_dir": training.cache_dir})
    if NEWLINE in missing and not has_own_newline:
        model.get_model().image_newline = None  # `initialize_vision_modules` draws one
        missing = missing - {NEWLINE}
    check_complete(missing, checkpoint.folder)
    model.config.use_cache = False
    return model


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
