"""What a run starts from, chosen before weights are loaded: a checkpoint, a prompt template, settings of the tower."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from llava.conversation import conv_templates
from llava.model.config import ImageLanguageConfig
from llava.model.loading.chat_template import default_template
from llava.model.loading.checkpoint import Checkpoint, inspect
from llava.model.loading.files import check_weights
from llava.model.loading.folder import local_folder
from llava.model.multimodal_encoder.builder import override_flag
from llava.model.multimodal_encoder.pretrained import drops_last_layer, read_vision_config, vision_config
from llava.model.vision.anyres import has_newline
from llava.train.arguments import ParsedArguments
from llava.train.checks import is_supported_aspect_ratio
from llava.train.tiles import choose_tiles, keep_aspect_ratio

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


class Start(NamedTuple):
    """What is chosen before weights are loaded."""

    checkpoint: Checkpoint
    """Its configuration has the settings of the run."""
    template: str
    """Key of the prompt template in `conv_templates`."""
    vision: SimpleNamespace | None
    """What LLaVA's `initialize_vision_modules` reads; None for a text-only model."""
    had_newline: bool
    """Whether the checkpoint holds a newline of tiles."""


def choose_start(args: ParsedArguments) -> Start:
    """Finds the checkpoint and brings its settings and the command line's together, with warnings where they differ.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it cannot be trained, or the flags do not fit it.
    """
    checkpoint = find_start_checkpoint(args)
    config = checkpoint.config
    had_newline = has_newline(config)
    template = resolve_version(args)
    keep_aspect_ratio(args, config)
    warn_of_defaults(args, config, template)
    vision = choose_vision(args, config)
    choose_tiles(args, config, vision)
    if vision is not None and config.mm_vision_config is None:
        check_tower(str(vision.vision_tower), args.training.cache_dir)
    return Start(checkpoint, template, vision, had_newline)


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


def check_tower(name: str, cache_dir: str | None) -> None:
    """Checks that a tower can be read, by its configuration and, in a folder, the headers of its weights.

    Raises:
        FileNotFoundError: there is none of that name.
        ValueError: it is neither CLIP nor SigLIP, or damaged.
    """
    read_vision_config(name, cache_dir=cache_dir)
    if Path(name).is_dir():
        check_weights(Path(name))


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
