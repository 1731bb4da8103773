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

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llava.command import written_whole
from llava.model.config import CONFIGS
from llava.model.loading.chat_template import template_by_name
from llava.model.loading.files import damaged, load_tensors, read_json, require_weights, state_dtype
from llava.model.loading.quantization import refuse_quantised

EMBEDDINGS = ("model.embed_tokens.weight", "transformer.wte.weight")
HEAD = "lm_head.weight"

VOCABULARY = (*EMBEDDINGS, HEAD)
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
        ValueError: one of both lacks a tensor of the language model, or is quantised, or a tensor has another shape.
    """
    for place in (folder, base):
        refuse_quantised(place)
    found, below = read_weights(folder), read_weights(base)
    whole, whole_base = with_head(found, folder), with_head(below, base)
    for missing, place, other in ((whole.keys() - whole_base, base, folder), (whole_base.keys() - whole, folder, base)):
        if names := sorted(name for name in missing if not ADDED.search(name)):
            raise ValueError(f"{place} lacks {names[0]!r}, which {other} has: it is incomplete, or of another model")
    return {
        name: add_tensor(name, tensor, whole_base[name], sign, (folder, base)) if name in whole_base else tensor
        for name, tensor in found.items()
    }


def with_head(weights: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Adds the output layer where it is tied to the embeddings: files hold such a matrix once or twice."""
    file = folder / "config.json"
    config = read_json(file) if file.is_file() else {}
    tables = [weights[name] for name in EMBEDDINGS if name in weights]
    return {HEAD: tables[0], **weights} if tables and ties_embeddings(config) else weights


def ties_embeddings(config: Mapping[str, Any]) -> bool:
    """Whether a config.json ties the output layer to the embeddings, which MPT's does without saying so."""
    return bool(config.get("tie_word_embeddings", "mpt" in config.get("model_type", "")))


def add_tensor(name: str, tensor: Tensor, below: Tensor, sign: int, folders: tuple[Path, Path]) -> Tensor:
    """Adds a base's tensor, or subtracts it; a vocabulary may have more rows than its base's."""
    own, rows = below.to(tensor.dtype), len(below)
    more = name in VOCABULARY and len(tensor) > rows and tensor.shape[1:] == own.shape[1:]
    if own.shape != tensor.shape and not more:
        raise ValueError(f"{name} is {tuple(tensor.shape)} in {folders[0]} and {tuple(own.shape)} in {folders[1]}")
    changed = tensor.clone()
    changed[:rows] += sign * own
    return changed


def write_checkpoint(out: Path, weights: dict[str, Tensor], source: Path, name: str) -> None:
    """Writes weights as safetensors, with what else is in the checkpoint that they come from, but for other folders.

    These are configuration, tokenizer, and the prior and the tower that the configuration names. The configuration
    names the weights' dtype, and the prompt template where `name` (the checkpoint's folder or hub id) implies it, which
    the new folder's name may not.
    """
    config = read_json(source / "config.json") if (source / "config.json").is_file() else {}
    named = named_places(config)
    with written_whole(out) as folder:
        for path in sorted(source.iterdir()):
            if path.is_file() and (path.name in named or not WEIGHTS.search(path.name)):
                shutil.copyfile(path, folder / path.name)
            elif path.is_dir() and path.name in named:
                shutil.copytree(path, folder / path.name)
        dtypes = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
        if config:
            values = state_template(state_dtype(config, dtypes.pop()) if len(dtypes) == 1 else config, name)
            (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        if repeats_embeddings(weights, config):
            weights = {key: tensor for key, tensor in weights.items() if key != HEAD}
        save_torch_state_dict(separate(weights), folder, max_shard_size="5GB", metadata={"format": "pt"})


def repeats_embeddings(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> bool:
    """Whether the output layer is the matrix of embeddings, by the configuration and in memory."""
    if HEAD not in weights or not ties_embeddings(config):
        return False
    tables = [weights[name].untyped_storage().data_ptr() for name in EMBEDDINGS if name in weights]
    return weights[HEAD].untyped_storage().data_ptr() in tables


def separate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors that share memory, as those of .bin files may: safetensors refuses shared memory."""
    separated, seen = {}, set[int]()
    for name, tensor in weights.items():
        memory = tensor.untyped_storage()
        shares = memory.data_ptr() in seen or memory.nbytes() != tensor.nbytes
        separated[name] = tensor.clone(memory_format=torch.contiguous_format) if shares else tensor.contiguous()
        seen.add(memory.data_ptr())
    return separated


def state_template(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Adds `conv_mode` to a configuration in LLaVA's format where the model's name alone tells its template."""
    known = CONFIGS.get(config.get("model_type", ""))
    if known is None or config.get("mm_vision_tower") is None or config.get("conv_mode") is not None:
        return config
    template = template_by_name(name, known)
    return config if template is None else {**config, "conv_mode": template}


def named_places(config: Mapping[str, Any]) -> set[str]:
    """Finds the names, in a checkpoint's folder, of what its configuration may refer to there: prior and tower."""
    settings = config.get("qlip")
    paths = [config.get("mm_vision_tower"), settings.get("mlp") if isinstance(settings, dict) else None]
    relative = [Path(path) for path in paths if isinstance(path, str) and not Path(path).is_absolute()]
    return {path.parts[0] for path in relative if path.parts and path.parts[0] != ".."}
