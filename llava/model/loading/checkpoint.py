"""Finds the kind, configuration and weights' names of a checkpoint folder.

Reads JSON and headers, never a weight's data, and ignores the folder's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError

from llava.model.config import CONFIGS, TEXT_CONFIGS, ImageLanguageConfig, LlavaMptConfig
from llava.model.field_types import check_language_model, check_quantization, check_sizes
from llava.model.llava_arch import MPT_NAMES, TOWER_NAMES
from llava.model.loading.chat_template import find_template
from llava.model.loading.checkpoint_tower import complete_tower, resolve_tower_path
from llava.model.loading.files import read_json, weight_files
from llava.model.loading.folder import PROJECTOR_FILE
from llava.model.loading.transformers_format import TRANSFORMERS_NAMES, config_from_transformers
from llava.model.loading.unsupported import describe_unsupported
from llava.model.multimodal_encoder.builder import check_scales
from llava.model.multimodal_encoder.pretrained import check_select_feature, check_select_layer, vision_config
from llava.model.multimodal_encoder.qlip_encoder import read_settings
from llava.model.multimodal_projector.builder import check_projector_type

Kind = Literal["full", "projector", "lora"]

LORA_FILE = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
"""Files of an adapter's weights, in peft's order."""
FURTHER_CONFIGS = ("preprocessor_config.json", "processor_config.json", "generation_config.json")


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a local checkpoint folder."""

    folder: Path
    kind: Kind
    config: ImageLanguageConfig
    names: dict[str, str]
    """Regular expressions on its parameter names -> ours."""


def inspect(folder: Path, **hub: Any) -> Checkpoint:
    """Inspects a checkpoint folder and completes its configuration.

    Args:
        folder: the checkpoint.
        **hub: `cache_dir`, `token`, ..., where a tower's configuration has to be looked up.

    Raises:
        FileNotFoundError: it has no config.json, or a LoRA's weights without their configuration.
        ValueError: its config.json is not a LLaVA checkpoint's, needs what is not supported, or is wrong; or
            another of its JSON files is damaged.
    """
    file = folder / "config.json"
    if not file.is_file():
        beside = f"; a LoRA checkpoint of LLaVA has one beside {LORA_FILE}" if (folder / LORA_FILE).is_file() else ""
        raise FileNotFoundError(f"{folder} has no config.json; expected a LLaVA checkpoint's folder{beside}")
    values = read_json(file)
    for name in FURTHER_CONFIGS:
        if (further := folder / name).is_file():
            read_json(further)  # transformers would replace a damaged one by its defaults, or fail after minutes
    if problem := describe_unsupported(values):
        raise ValueError(f"{file}: {problem}")
    try:
        name_dtypes(values)
        config, names = read_config(values, folder)
    except (StrictDataclassError, AttributeError, TypeError, ValueError) as error:  # transformers' too
        raise ValueError(f"{file}: {error}") from error
    if names is TRANSFORMERS_NAMES:
        if config.conv_mode is None:
            config.conv_mode = find_template(folder, config)
        return Checkpoint(folder, "full", config, names)
    if (kind := find_kind(folder)) != "full":
        return Checkpoint(folder, kind, config, names)
    padding, rows = config.pad_token_id, config.vocab_size
    if padding is not None and not -rows <= padding < rows:  # a LoRA's may be one that training added to its base
        raise ValueError(f"{file}: pad_token_id is {padding}; allowed are null and ids below vocab_size, {rows}")
    complete_tower(config, folder, **hub)
    return Checkpoint(folder, "full", config, names)


def name_dtypes(values: dict[str, Any]) -> None:
    """Writes the dtypes that a config.json names as torch does, without the "torch." that some have.

    Raises:
        ValueError: torch has no such dtype.
    """
    import torch

    for part in (values, values.get("text_config")):
        for key in ("dtype", "torch_dtype"):
            if isinstance(part, dict) and isinstance(part.get(key), str):
                name = part[key].removeprefix("torch.")
                if not isinstance(getattr(torch, name, None), torch.dtype):
                    raise ValueError(f"{key} is {part[key]!r}; allowed are torch's dtypes, such as 'float16'")
                part[key] = name


def find_kind(folder: Path) -> Kind:
    """Finds by its files whether a folder holds a LoRA, a projector alone, or neither.

    Raises:
        FileNotFoundError: it holds the weights of a LoRA without their configuration.
    """
    if (folder / LORA_FILE).is_file():
        return "lora"
    alone = [name for name in ADAPTER_FILES if (folder / name).is_file()]
    if alone and not weight_files(folder):
        raise FileNotFoundError(f"{folder} has {alone[0]} but no {LORA_FILE}, which says how to add it to its base")
    return "full" if weight_files(folder) or not (folder / PROJECTOR_FILE).is_file() else "projector"


def read_config(values: dict[str, Any], folder: Path) -> tuple[ImageLanguageConfig, dict[str, str]]:
    """Reads and checks the configuration in a config.json; returns it with the names of its checkpoint's weights."""
    read_settings(values.get("qlip"))
    check_sizes(values)
    check_quantization(values.get("quantization_config"))
    parts = [part for part in ("text_config", "vision_config") if part in values]
    if len(parts) == 2:
        config = config_from_transformers(values)
        check_language_model(config)
        return config, TRANSFORMERS_NAMES
    if parts and "mm_vision_tower" not in values:
        raise ValueError(f"it holds {parts[0]} alone; a LLaVA of transformers has text_config and vision_config")
    config = config_from_llava(values, folder)
    check_language_model(config)
    if config.has_tower:
        check_projector_type(config.mm_projector_type)
        check_scales(config)
    if config.mm_vision_config is not None:
        tower = vision_config(config.mm_vision_config)
        check_select_feature(config.mm_vision_select_feature, tower)
        check_select_layer(config.mm_vision_select_layer, tower)
    return config, MPT_NAMES if isinstance(config, LlavaMptConfig) else TOWER_NAMES


def require_tower(config: ImageLanguageConfig, path: str | Path) -> None:
    """Raises unless a checkpoint's configuration names a vision tower.

    Raises:
        ValueError: it is a text-only language model.
    """
    if not config.has_tower:
        raise ValueError(
            f"{path} has no vision tower, it is a language model alone; give a LLaVA checkpoint, or the projector or "
            "LoRA checkpoint on top of it, with it as the base model (--model-base)"
        )


def config_from_llava(values: dict[str, Any], folder: Path) -> ImageLanguageConfig:
    """Builds the configuration of a checkpoint in LLaVA's format, or of a language model alone.

    `mm_vision_tower` becomes a path if it names a folder, relative to the checkpoint or to the working directory.
    """
    config_class = {**CONFIGS, **TEXT_CONFIGS}[values["model_type"]]
    config = config_class(**{name: value for name, value in values.items() if name != "model_type"})
    resolve_tower_path(config, folder)
    return config
