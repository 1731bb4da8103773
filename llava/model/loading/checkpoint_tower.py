"""Finds the vision tower whose weights a checkpoint holds itself, as those that were trained with their tower do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from llava.model.config import MultimodalConfig
from llava.model.loading.files import weight_shapes
from llava.model.loading.folder import local_folder
from llava.model.multimodal_encoder.pretrained import (
    OPENAI_CLIP,
    check_select_layer,
    drops_last_layer,
    fit_vision_config,
    infer_vision_config,
    is_siglip,
    read_vision_config,
)

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
"""Arguments of `from_pretrained` that say where files are found; `subfolder` is one more."""


def complete_arguments(model_class: Any, path: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Completes the arguments of a model's `from_pretrained`, so that it builds the tower that the checkpoint holds.

    Args:
        model_class: a class of `llava.model`.
        path: folder or hub id of the checkpoint; None if there is none.
        arguments: a configuration among them is completed in place.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: see `tower_config_inside`.
    """
    if path is None:
        return arguments
    hub = {name: arguments[name] for name in HUB_OPTIONS if arguments.get(name) is not None}
    part, given = arguments.get("subfolder") or "", arguments.get("config")
    is_built = isinstance(given, PreTrainedConfig)
    config: Any = given if is_built else model_class.config_class.from_pretrained(given or path, subfolder=part, **hub)
    if config.mm_vision_config is not None or config.mm_vision_tower is None:
        return arguments
    folder = local_folder(str(path), **hub) / part
    resolve_tower_path(config, folder)
    complete_tower(config, folder, **{name: value for name, value in hub.items() if name != "revision"})
    if is_built:
        return arguments
    return {**arguments, "config": config} if given is not None else {**_tower_fields(config), **arguments}


def _tower_fields(config: MultimodalConfig) -> dict[str, Any]:
    names = ("mm_vision_config", "mm_vision_select_layer", "mm_vision_tower")
    return {name: getattr(config, name) for name in names}


def resolve_tower_path(config: MultimodalConfig, folder: Path) -> None:
    """Makes `mm_vision_tower` a path if it names a folder within the checkpoint's."""
    tower = config.mm_vision_tower
    if tower is not None and (folder / tower).is_dir() and (folder / tower / "config.json").is_file():
        config.mm_vision_tower = str(folder / tower)


def complete_tower(config: MultimodalConfig, folder: Path, **hub: Any) -> None:
    """Sets `mm_vision_config` where it is absent and the checkpoint holds the tower's weights.

    Raises:
        ValueError: see `tower_config_inside`; or the tower has no such layer as is asked for.
    """
    if config.mm_vision_config is not None or config.mm_vision_tower is None:
        return
    tower = tower_config_inside(folder, config.mm_vision_tower, **hub)
    if tower is not None:
        config.mm_vision_config = tower.to_dict()
        if drops_last_layer(tower):
            config.mm_vision_select_layer = -1  # of all layers it is the second last
        try:
            check_select_layer(config.mm_vision_select_layer, tower)
        except ValueError as error:
            raise ValueError(f"{folder / 'config.json'}: {error}") from error


def tower_config_inside(folder: Path, tower: str, **hub: Any) -> PreTrainedConfig | None:
    """Finds the tower's configuration if the checkpoint holds its weights, else None.

    Where the weights alone do not determine it, the published configuration is fitted to them.

    Args:
        folder: the checkpoint.
        tower: `mm_vision_tower`, a folder or hub id.
        **hub: `cache_dir`, `token`, ...

    Raises:
        ValueError: it cannot be found, or is of another type.
    """
    shapes = {
        match[1]: shape
        for name, shape in weight_shapes(folder, "vision_tower.").items()
        if (match := re.fullmatch(r"(?:model|transformer)\.vision_tower\.vision_tower\.(?:vision_model\.)?(.+)", name))
    }
    if not shapes:
        return None
    try:
        is_published = (Path(tower) / "config.json").is_file()
        if not is_published and (is_siglip(shapes) or OPENAI_CLIP.fullmatch(tower)):
            return infer_vision_config(shapes)
        return fit_vision_config(read_vision_config(tower, **hub), shapes)
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} holds the weights of its vision tower, which do not show its heads and activation, and {error};"
            " set mm_vision_config in config.json; of a copy of OpenAI's CLIP, mm_vision_tower to its id on the hub"
        ) from error
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
