"""What a checkpoint folder holds: its kind, its configuration, the names and shapes of its weights.

Reads JSON and headers, never a weight's data. The folder's name means nothing.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import safe_open

from llava.model.config import LlavaConfig
from llava.model.llava_arch import TOWER_NAMES
from llava.model.multimodal_encoder.pretrained import clip_config_from_shapes, vision_config

Kind = Literal["full", "projector", "lora"]

PROJECTOR_FILE = "mm_projector.bin"
NON_LORA_FILE = "non_lora_trainables.bin"
LORA_FILE = "adapter_config.json"
TOWER_PREFIX = "model.vision_tower.vision_tower."

TRANSFORMERS_NAMES = {
    r"^(?:model\.)?vision_tower\.(?:vision_model\.)?": TOWER_PREFIX,
    r"^(?:model\.)?multi_modal_projector\.linear_1\.": "model.mm_projector.0.",
    r"^(?:model\.)?multi_modal_projector\.linear_2\.": "model.mm_projector.2.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^(?:language_model\.model|model\.language_model)\.": "model.",
}
"""Parameter names of transformers' LlavaForConditionalGeneration, old and new, -> ours."""


@dataclass(frozen=True)
class Checkpoint:
    """A local folder, looked into."""

    folder: Path
    kind: Kind
    config: LlavaConfig
    names: dict[str, str]
    """Regular expressions on its parameter names -> ours."""


def local_folder(path: str, **hub: Any) -> Path:
    """A folder as it is; a hub id downloaded, safetensors only where there are any.

    Raises:
        FileNotFoundError: it is neither.
        PermissionError: the hub wants to know who asks.
    """
    if Path(path).is_dir():
        return Path(path)
    small = ["*.json", "*.model", "*.txt", PROJECTOR_FILE, NON_LORA_FILE, "adapter_model.*"]
    try:
        folder = Path(snapshot_download(path, allow_patterns=[*small, "*.safetensors"], **hub))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(path, allow_patterns=[*small, "pytorch_model*.bin"], **hub))
    except GatedRepoError as error:
        raise PermissionError(f"{path!r} is gated: accept its terms on the hub, then log in or give token") from error
    except (HFValidationError, RepositoryNotFoundError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"{path!r} is neither a folder nor a model id that the hub, or the local cache, knows"
        ) from error
    return folder


def inspect(folder: Path) -> Checkpoint:
    """Finds out what a folder holds and completes its configuration.

    Raises:
        FileNotFoundError: it has no config.json.
        ValueError: it is no LLaVA checkpoint on Llama.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"{folder} has no config.json; expected a LLaVA checkpoint's folder")
    values = json.loads(config_file.read_text())
    if "text_config" in values and "vision_config" in values:
        return Checkpoint(folder, "full", config_from_transformers(values), TRANSFORMERS_NAMES)
    config = config_from_llava(values, folder)
    if (folder / LORA_FILE).is_file():
        return Checkpoint(folder, "lora", config, TOWER_NAMES)
    if not weight_files(folder) and (folder / PROJECTOR_FILE).is_file():
        return Checkpoint(folder, "projector", config, TOWER_NAMES)
    if config.mm_vision_config is None and config.mm_vision_tower is not None:
        config.mm_vision_config = tower_config_inside(folder, config.mm_vision_tower)
    return Checkpoint(folder, "full", config, TOWER_NAMES)


def config_from_llava(values: dict[str, Any], folder: Path) -> LlavaConfig:
    """The configuration of a checkpoint in LLaVA's format, or of a bare Llama.

    `mm_vision_tower` becomes a path where it names a folder, seen from the checkpoint or from here.
    """
    model_type = values.get("model_type")
    if model_type not in ("llava", "llava_llama", "llama"):
        raise ValueError(f"{folder} is of type {model_type!r}; allowed are 'llava', 'llava_llama' and 'llama'")
    config = LlavaConfig(**{name: value for name, value in values.items() if name != "model_type"})
    tower = config.mm_vision_tower
    if tower is not None and (folder / tower).is_dir() and (folder / tower / "config.json").is_file():
        config.mm_vision_tower = str(folder / tower)
    return config


def config_from_transformers(values: dict[str, Any]) -> LlavaConfig:
    """The configuration of a checkpoint of transformers' LlavaForConditionalGeneration (llava-hf/llava-1.5-*)."""
    text = dict(values["text_config"])
    if values.get("model_type", "llava") != "llava":
        raise ValueError(
            f"the checkpoint is of type {values['model_type']!r}; of transformers' formats only 'llava' fits"
        )
    dtype = text.pop("dtype", None) or text.pop("torch_dtype", None)
    if text.pop("model_type", "llama") != "llama":
        raise ValueError(f"the language model is of type {values['text_config']['model_type']!r}; allowed is 'llama'")
    vision = vision_config({"model_type": "clip_vision_model", **values["vision_config"]})
    # Without a [CLS] to keep, SigLIP's "full" is the patches.
    keeps_cls = values.get("vision_feature_select_strategy") == "full" and vision.model_type == "clip_vision_model"
    return LlavaConfig(
        **text,
        mm_vision_config=vision.to_dict(),
        mm_vision_select_layer=values.get("vision_feature_layer", -2),
        mm_vision_select_feature="cls_patch" if keeps_cls else "patch",
        mm_projector_type="mlp2x_gelu",
        mm_hidden_size=vision.hidden_size,
        image_aspect_ratio="pad",
        dtype=values.get("dtype") or values.get("torch_dtype") or dtype,
        qlip=values.get("qlip"),
    )


def tower_config_inside(folder: Path, tower: str) -> dict[str, Any] | None:
    """The tower's configuration if its weights lie in the checkpoint, else None."""
    shapes = {
        match[1]: shape
        for name, shape in weight_shapes(folder, "vision_tower.").items()
        if (match := re.fullmatch(r"model\.vision_tower\.vision_tower\.(?:vision_model\.)?(.+)", name))
    }
    if not shapes:
        return None
    if (config_file := Path(tower) / "config.json").is_file():
        return vision_config(json.loads(config_file.read_text())).to_dict()
    return clip_config_from_shapes(shapes).to_dict()


def weight_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's weights, safetensors before .bin, whole or in shards."""
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        if (single := folder / f"{stem}{suffix}").is_file():
            return [single]
        if (index := folder / f"{stem}{suffix}.index.json").is_file():
            return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    return []


def weight_shapes(folder: Path, part: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors whose names contain `part`, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                names = [name for name in tensors.keys() if part in name]  # noqa: SIM118 (no mapping)
                shapes.update({name: tuple(tensors.get_slice(name).get_shape()) for name in names})
        else:
            state = torch.load(file, map_location="meta", weights_only=True)
            shapes.update({name: tuple(tensor.shape) for name, tensor in state.items() if part in name})
    return shapes
