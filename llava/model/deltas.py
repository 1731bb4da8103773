"""Checkpoints as sums: a fine-tuned model is its base plus a delta, as LLaVA's first weights were published.

Works on the weights' files; builds no model. Tensors keep the dtype of the checkpoint that is changed.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from torch import Tensor

from llava.model.loading.files import weight_files

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
        ValueError: the folder holds no weights.
    """
    files = weight_files(folder)
    if not files:
        raise ValueError(
            f"{folder} holds no weights: neither model.safetensors nor pytorch_model.bin, nor their shards"
        )
    weights: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".bin":
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            weights |= {name: tensor for name, tensor in state.items() if part in name}
            continue
        with safe_open(file, framework="pt") as tensors:
            names = [name for name in tensors.keys() if part in name]  # noqa: SIM118 (no mapping)
            weights |= {name: tensors.get_tensor(name) for name in names}
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


def write_checkpoint(out: Path, weights: dict[str, Tensor], source: Path) -> None:
    """Writes weights as safetensors, with the configuration and tokenizer of the checkpoint that they come from."""
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.is_file() and not WEIGHTS.search(file.name):
            shutil.copyfile(file, out / file.name)
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_torch_state_dict(contiguous, out, max_shard_size="5GB", metadata={"format": "pt"})


def check_empty(out: Path) -> None:
    """Raises ValueError unless `out`, a checkpoint's future folder, is empty or does not exist."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already and not an empty folder; name a new one")
