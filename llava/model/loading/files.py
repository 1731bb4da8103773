"""Finds and reads a checkpoint's files. Every error names its file.

Weights are safetensors, or .bin files that hold nothing but tensors.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

WEIGHTS = (("model", ".safetensors"), ("pytorch_model", ".bin"))
"""Stem and suffix of a checkpoint's weights files, the preferred ones first."""

FULL_HASH_BYTES = 2**30
"""Bytes up to which files are hashed in full."""
SAMPLES, SAMPLE = 256, 2**16


def read_json(file: Path) -> dict[str, Any]:
    """Reads the object in a JSON file.

    Raises:
        ValueError: it is not JSON, or not an object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds no JSON object")
    return values


def state_dtype(config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Copies what a config.json holds, with the dtype of the weights beside it under each name that it has.

    transformers 4 reads `torch_dtype`, transformers 5 also writes `dtype`.
    """
    name = str(dtype).removeprefix("torch.")
    return {**config, "torch_dtype": name, **({"dtype": name} if "dtype" in config else {})}


def weight_files(folder: Path) -> list[Path]:
    """Lists the files of a checkpoint's weights, safetensors before .bin, single or in shards; empty if there are none.

    Raises:
        FileNotFoundError: an index names a file that is not in the folder.
        ValueError: an index cannot be read, or names a file outside the folder.
    """
    for stem, suffix in WEIGHTS:
        if (single := folder / f"{stem}{suffix}").is_file():
            return [single]
        if (index := folder / f"{stem}{suffix}.index.json").is_file():
            return read_index(index)
    return []


def read_index(index: Path) -> list[Path]:
    """Lists the shards that an index names, all in its folder. A shard may be a link, as in the hub's cache."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} has no weight_map, which names the file of each weight")
    for weight, name in places.items():
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name:
            raise ValueError(f"{index} places {weight!r} in {name!r}; allowed are names of files beside it")
    shards = [index.parent / name for name in sorted(set(places.values()))]
    if absent := [shard for shard in shards if not shard.is_file()]:
        raise FileNotFoundError(f"{index} names {absent[0].name!r}, which is not in the folder; download it again")
    return shards


def weight_shapes(folder: Path, part: str) -> dict[str, tuple[int, ...]]:
    """Reads the shapes of the tensors whose names contain `part`, by name, without their data.

    Raises:
        ValueError: a file is damaged.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder):
        shapes.update({name: shape for name, shape in tensor_shapes(file).items() if part in name})
    return shapes


def require_weights(folder: Path) -> list[Path]:
    """Lists the files of a checkpoint's weights, see `weight_files`.

    Raises:
        FileNotFoundError: there are none.
    """
    files = weight_files(folder)
    if not files:
        names = " or ".join(stem + suffix for stem, suffix in WEIGHTS)
        raise FileNotFoundError(f"{folder} holds no weights: expected {names}, or shards and their index")
    return files


def check_weights(folder: Path) -> None:
    """Raises unless a folder holds weights in complete files; reads no data.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: a file is damaged.
    """
    for file in require_weights(folder):
        tensor_shapes(file)


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Reads the shapes of the tensors in a file, by name, without their data."""
    if file.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in load_tensors(file, "meta").items()}
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise damaged(file, error) from error


def load_tensors(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """Reads the tensors of a file, by name. Runs no pickled code.

    Raises:
        ValueError: the file is damaged, or holds objects other than tensors.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file, device)
        state = torch.load(file, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(file))
    except UnpicklingError as error:
        raise ValueError(
            f"{file} is damaged, or holds Python objects, which are never loaded (weights_only); allowed are tensors"
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch takes any bytes for instructions, which fail in any way
        raise damaged(file, error) from error
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{file} holds something other than named tensors")
    return dict(state)


def damaged(file: Path, error: Exception) -> ValueError:
    """Builds the error for a file that cannot be read."""
    reason = str(error).partition(". ")[0] or type(error).__name__
    return ValueError(f"{file} is damaged or cut short ({file.stat().st_size} bytes): {reason}; download it again")


def hash_files(files: Sequence[Path], named: bool = True) -> str:
    """Hashes names and contents by SHA-256: "sha256:..."; above 1 GiB in total, "sha256-sampled:...".

    A sampled hash covers each file's name, size, first MiB (where safetensors keeps names and shapes) and 256 pieces of
    64 KiB at equal distances. Training changes all weights, so it changes the hash; a manual edit in a few places may
    not.

    Args:
        files: in the order in which they count.
        named: whether the names count; without them the hash stays if a file is renamed.
    """
    whole = sum(file.stat().st_size for file in files) <= FULL_HASH_BYTES
    digest = sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name if named else ''}\0{size}\0".encode())
        with file.open("rb") as stream:
            if whole or size <= 2**20 + SAMPLES * SAMPLE:
                while piece := stream.read(2**20):
                    digest.update(piece)
                continue
            digest.update(stream.read(2**20))
            for number in range(SAMPLES):
                stream.seek((size - SAMPLE) * number // (SAMPLES - 1))
                digest.update(stream.read(SAMPLE))
    return f"sha256{'' if whole else '-sampled'}:{digest.hexdigest()}"
