"""Finds the kind, configuration and weights' names of a checkpoint folder.

Reads JSON and headers, never a weight's data, and ignores the folder's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from transformers import PreTrainedConfig

from llava.command import names_folder
from llava.model.config import CONFIGS, TEXT_CONFIGS, ImageLanguageConfig, LlavaMptConfig
from llava.model.llava_arch import MPT_NAMES, TOWER_NAMES
from llava.model.loading.chat_template import find_template
from llava.model.loading.files import read_json, weight_files, weight_shapes
from llava.model.loading.transformers_format import TRANSFORMERS_NAMES, config_from_transformers
from llava.model.loading.unsupported import describe_unsupported
from llava.model.multimodal_encoder.builder import check_scales
from llava.model.multimodal_encoder.pretrained import (
    OPENAI_CLIP,
    check_select_feature,
    drops_last_layer,
    fit_vision_config,
    infer_vision_config,
    is_siglip,
    read_vision_config,
    vision_config,
)
from llava.model.multimodal_encoder.qlip_encoder import read_settings
from llava.model.multimodal_projector.builder import check_projector_type

Kind = Literal["full", "projector", "lora"]

PROJECTOR_FILE = "mm_projector.bin"
NON_LORA_FILE = "non_lora_trainables.bin"
LORA_FILE = "adapter_config.json"
FURTHER_CONFIGS = ("preprocessor_config.json", "processor_config.json", "generation_config.json")


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a local checkpoint folder."""

    folder: Path
    kind: Kind
    config: ImageLanguageConfig
    names: dict[str, str]
    """Regular expressions on its parameter names -> ours."""


def local_folder(path: str, **hub: Any) -> Path:
    """Finds a checkpoint's folder, downloading a hub id; only its safetensors if it has any.

    Raises:
        FileNotFoundError: it is neither.
        PermissionError: the hub asks for a login.
    """
    if Path(path).is_dir():
        return Path(path)
    if Path(path).is_file():
        raise FileNotFoundError(f"{path!r} is a file; a checkpoint is a folder, or a model id of the hub (OWNER/NAME)")
    if names_folder(path):
        raise FileNotFoundError(f"there is no checkpoint folder {path!r}; model ids of the hub read OWNER/NAME")
    small = ["*.json", "*.jinja", "*.model", "*.txt", PROJECTOR_FILE, NON_LORA_FILE, "adapter_model.*"]
    try:
        folder = Path(snapshot_download(path, allow_patterns=[*small, "*.safetensors"], **hub))
        found = [file.name for file in folder.glob("*.safetensors")]
        if not any(name.startswith(("model", "adapter_model")) for name in found):  # not a prior alone
            folder = Path(snapshot_download(path, allow_patterns=[*small, "pytorch_model*.bin"], **hub))
    except GatedRepoError as error:
        raise PermissionError(f"{path!r} is gated: accept its terms on the hub, then log in or give token") from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{path!r} has no revision {hub.get('revision')!r} on the hub") from error
    except HFValidationError as error:
        raise FileNotFoundError(f"{path!r} is neither a folder nor of the form of a model id (OWNER/NAME)") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"{path!r} is neither a folder nor a model id that the hub knows") from error
    except LocalEntryNotFoundError as error:
        wanted = f"; wanted is its revision {hub['revision']!r}" if hub.get("revision") else ""
        raise FileNotFoundError(
            f"{path!r} is neither a folder nor a model id that the local cache holds, and the hub "
            f"{_describe_offline(hub)}{wanted}"
        ) from error
    return folder


def _describe_offline(hub: Mapping[str, Any]) -> str:
    if constants.HF_HUB_OFFLINE:
        return "was not asked (HF_HUB_OFFLINE=1)"
    return "was not asked (local_files_only)" if hub.get("local_files_only") else "cannot be asked (no connection)"


def inspect(folder: Path, **hub: Any) -> Checkpoint:
    """Inspects a checkpoint folder and completes its configuration.

    Args:
        folder: the checkpoint.
        **hub: `cache_dir`, `token`, ..., where a tower's configuration has to be looked up.

    Raises:
        FileNotFoundError: it has no config.json.
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
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error
    if names is TRANSFORMERS_NAMES:
        if config.conv_mode is None:
            config.conv_mode = find_template(folder, config)
        return Checkpoint(folder, "full", config, names)
    if (kind := find_kind(folder)) != "full":
        return Checkpoint(folder, kind, config, names)
    if config.mm_vision_config is None and config.mm_vision_tower is not None:
        tower = tower_config_inside(folder, config.mm_vision_tower, **hub)
        if tower is not None:
            config.mm_vision_config = tower.to_dict()
            if drops_last_layer(tower):
                config.mm_vision_select_layer = -1  # of all layers it is the second last
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
    """Finds by its files whether a folder holds a LoRA, a projector alone, or neither."""
    if (folder / LORA_FILE).is_file():
        return "lora"
    return "full" if weight_files(folder) or not (folder / PROJECTOR_FILE).is_file() else "projector"


def read_config(values: dict[str, Any], folder: Path) -> tuple[ImageLanguageConfig, dict[str, str]]:
    """Reads and checks the configuration in a config.json; returns it with the names of its checkpoint's weights."""
    read_settings(values.get("qlip"))
    if "text_config" in values and "vision_config" in values:
        return config_from_transformers(values), TRANSFORMERS_NAMES
    config = config_from_llava(values, folder)
    if config.has_tower:
        check_projector_type(config.mm_projector_type)
        check_scales(config)
    if config.mm_vision_config is not None:
        check_select_feature(config.mm_vision_select_feature, vision_config(config.mm_vision_config))
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
    tower = config.mm_vision_tower
    if tower is not None and (folder / tower).is_dir() and (folder / tower / "config.json").is_file():
        config.mm_vision_tower = str(folder / tower)
    return config


def tower_config_inside(folder: Path, tower: str, **hub: Any) -> PreTrainedConfig | None:
    """Finds the tower's configuration if the checkpoint holds its weights, else None.

    It is the published one, where the weights alone do not show it, fitted to the weights.

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
