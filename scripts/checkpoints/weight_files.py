"""Weight files of a checkpoint: reading, and writing under LLaVA's or transformers' names.

Knows nothing of configurations or tokenizers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from llava.model.deltas import separate
from llava.model.loading.checkpoint import Checkpoint
from llava.model.loading.files import load_tensors, weight_files
from llava.model.loading.transformers_format import TOWER_PREFIX

EMBEDDINGS = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
"""Our name of the output layer's weight, which a checkpoint with tied embeddings need not have."""

VOCABULARY = (EMBEDDINGS, HEAD)
"""Our names of the weights with a row for each token."""

LLAVA_FILE_NAMES = {rf"^{re.escape(TOWER_PREFIX)}": f"{TOWER_PREFIX}vision_model."}
"""Our names -> those in LLaVA's files."""

TRANSFORMERS_FILE_NAMES = {
    rf"^{re.escape(TOWER_PREFIX)}": "vision_tower.vision_model.",
    r"^model\.mm_projector\.0\.": "multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "multi_modal_projector.linear_2.",
    r"^model\.image_newline$": "image_newline",
    r"^lm_head\.": "language_model.lm_head.",
    r"^model\.(?!mm_projector|vision_tower)": "language_model.model.",
}
"""Our names -> those in the files of the llava-hf checkpoints, which every version of transformers and vLLM reads."""


def rewrite(checkpoint: Checkpoint, out: Path, names: dict[str, str], rows: int) -> None:
    """Writes the weights, file by file, under other names; the vocabulary's get `rows` rows."""
    written: dict[str, str] = {}
    for file in weight_files(checkpoint.folder):
        tensors = {}
        for name, tensor in read(file):
            ours = renamed(name, checkpoint.names)
            tensors[renamed(ours, names)] = with_rows(tensor, rows) if ours in VOCABULARY else tensor
        write(out, file.name, tensors, written)
    write_index(out, written)


def renamed(name: str, names: dict[str, str]) -> str:
    """Renames by the first expression that matches."""
    for pattern, replacement in names.items():
        if re.search(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def with_rows(tensor: Tensor, rows: int) -> Tensor:
    """Appends rows to a vocabulary (V, D), each the mean of all: its logit is the mean of the others'."""
    if len(tensor) >= rows:
        return tensor
    mean = tensor.float().mean(0, keepdim=True).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(rows - len(tensor), -1)])


def read(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Reads names and tensors of a weight file, one at a time."""
    if file.suffix == ".bin":
        yield from load_tensors(file).items()
        return
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (no mapping)
            yield name, tensors.get_tensor(name)


def names_in(file: Path) -> list[str]:
    """Lists the names of the tensors in a weight file."""
    if file.suffix == ".bin":
        return list(load_tensors(file, "meta"))
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def read_one(file: Path, name: str) -> Tensor:
    """Reads one tensor of a weight file."""
    if file.suffix == ".bin":
        return load_tensors(file)[name]
    with safe_open(file, framework="pt") as tensors:
        return tensors.get_tensor(name)


def dtype_of_files(folder: Path) -> torch.dtype:
    """Finds the dtype of a checkpoint's floating-point weights, by the first of them."""
    for file in weight_files(folder):
        for name in names_in(file):
            if (tensor := read_one(file, name)).is_floating_point():
                return tensor.dtype
    raise ValueError(f"{folder} holds no weights")


def write(out: Path, file_name: str, tensors: dict[str, Tensor], written: dict[str, str]) -> None:
    """Writes one safetensors file and notes in `written` what it holds."""
    name = re.sub(r"^pytorch_model(.*)\.bin$", r"model\1.safetensors", file_name)
    save_file(separate(tensors), out / name, {"format": "pt"})
    written.update(dict.fromkeys(tensors, name))


def write_index(out: Path, written: dict[str, str]) -> None:
    """Writes the index of weight files; a single one of the usual name needs none."""
    if set(written.values()) != {"model.safetensors"}:
        size = sum(file.stat().st_size for file in out.glob("model*.safetensors"))
        index = {"metadata": {"total_size": size}, "weight_map": written}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True))
