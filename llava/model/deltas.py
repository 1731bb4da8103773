"""Checkpoints as sums: a fine-tuned model is its base plus a delta, as LLaVA's first weights were published.

Works on the weights' files; builds no model. Tensors keep the dtype of the checkpoint that is changed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llava.model.config import CONFIGS
from llava.model.loading.chat_template import default_template, template_by_name
from llava.model.loading.files import damaged, load_tensors, read_json, require_weights, state_dtype

VOCABULARY = ("model.embed_tokens.weight", "transformer.wte.weight", "lm_head.weight")
"""Weights that may have more rows than the base's: LLaVA appends image tokens."""

ADDED = re.compile(r"mm_projector|vision_tower|image_newline")
"""Names of LLaVA's additions to a language model; a delta holds these unchanged."""

BUFFERS = re.compile(r"rotary_emb\.inv_freq$")
"""Names that old versions of transformers wrote and no version reads."""

WEIGHTS = re.compile(r"\.(safetensors|bin|pt|pth|h5|msgpack)(\.index\.json)?$")


def read_weights(folder: Path, part: str = "") -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint whose names contain `part`, by name.

    Raises:
        FileNotFoundError: the folder holds no weights.
        ValueError: a file is damaged.
    """
    weights: dict[str, Tensor] = {}
    for file in require_weights(folder):
        if file.suffix == ".bin":
            weights |= {name: tensor for name, tensor in load_tensors(file).items() if part in name}
            continue
        try:
            with safe_open(file, framework="pt") as tensors:
                names = [name for name in tensors.keys() if part in name]  # noqa: SIM118 (no mapping)
                weights |= {name: tensors.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise damaged(file, error) from error
    return {name: tensor for name, tensor in weights.items() if not BUFFERS.search(name)}


def add_base(folder: Path, base: Path, sign: int) -> dict[str, Tensor]:
    """Adds the tensors of its base model to a checkpoint's, or subtracts them with sign -1.

    Args:
        folder: the checkpoint.
        base: its language model.
        sign: 1 or -1.

    Raises:
        ValueError: the base lacks a tensor of the language model, or it has another shape.
    """
    below = read_weights(base)
    weights = {}
    for name, tensor in read_weights(folder).items():
        if name not in below:
            if not ADDED.search(name):
                raise ValueError(f"{base} lacks {name!r}, which {folder} has: it is another model's base")
            weights[name] = tensor
            continue
        own, rows = below[name].to(tensor.dtype), len(below[name])
        more = name in VOCABULARY and len(tensor) > rows and tensor.shape[1:] == own.shape[1:]
        if own.shape != tensor.shape and not more:
            raise ValueError(f"{name} is {tuple(tensor.shape)} in {folder} and {tuple(own.shape)} in {base}")
        weights[name] = tensor.clone()
        weights[name][:rows] += sign * own
    return weights


def write_checkpoint(out: Path, weights: dict[str, Tensor], source: Path, name: str) -> None:
    """Writes weights as safetensors, with what else is in the checkpoint that they come from, but for other folders.

    These are configuration, tokenizer, and the prior and the tower that the configuration names. The configuration
    says the weights' dtype, and the prompt template where `name`, the checkpoint's folder or hub id, tells it: the new
    folder's may not.
    """
    out.mkdir(parents=True, exist_ok=True)
    config = read_json(source / "config.json") if (source / "config.json").is_file() else {}
    named = named_places(config)
    for path in sorted(source.iterdir()):
        if path.is_file() and (path.name in named or not WEIGHTS.search(path.name)):
            shutil.copyfile(path, out / path.name)
        elif path.is_dir() and path.name in named:
            shutil.copytree(path, out / path.name)
    dtypes = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    if config and len(dtypes) == 1:
        values = state_template(state_dtype(config, dtypes.pop()), name)
        (out / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_torch_state_dict(contiguous, out, max_shard_size="5GB", metadata={"format": "pt"})


def state_template(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Adds `conv_mode` to a configuration in LLaVA's format where the model's name alone tells its template."""
    known = CONFIGS.get(config.get("model_type", ""))
    if known is None or config.get("mm_vision_tower") is None or config.get("conv_mode") is not None:
        return config
    template = None if default_template(known) != "vicuna_v1" else template_by_name(name)
    return config if template is None else {**config, "conv_mode": template}


def named_places(config: Mapping[str, Any]) -> set[str]:
    """Finds the names, in a checkpoint's folder, of what its configuration may refer to there: prior and tower."""
    settings = config.get("qlip")
    paths = [config.get("mm_vision_tower"), settings.get("mlp") if isinstance(settings, dict) else None]
    relative = [Path(path) for path in paths if isinstance(path, str) and not Path(path).is_absolute()]
    return {path.parts[0] for path in relative if path.parts and path.parts[0] != ".."}


def check_empty(out: Path) -> None:
    """Raises ValueError unless `out`, a checkpoint's future folder, is empty or does not exist."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already and not an empty folder; name a new one")
