"""LoRA adapters, as peft and LLaVA's training write them: merged into the layers that they have matrices for."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from llava.model.llava_arch import MPT_NAMES
from llava.model.loading.checkpoint import ADAPTER_FILES, LORA_FILE
from llava.model.loading.files import load_tensors, read_json
from llava.model.loading.weights import TOWER, add_weights, llava_name, our_name

MATRIX = re.compile(
    r"^(?P<layer>.+)\.(?P<part>lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))(?:\.default)?(?:\.weight)?$"
)
PREFIX = "base_model.model."
"""Begins the names in peft's files."""
BIAS = re.compile(r"\.lora_B\.bias$")
PAIRS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
LANGUAGE_LAYERS = {"model.layers", "model.blocks"}
"""Our names of the layers of Llama, Mistral and Qwen2, and of MPT."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter in memory."""

    folder: Path
    file: Path
    """Its weights."""

    config: Any
    """peft's LoraConfig."""

    layers: dict[str, dict[str, Tensor]]
    """Our name of each adapted layer -> "lora_A", "lora_B", ... -> matrix."""

    whole: dict[str, Tensor]
    """Weights that were trained in full (`modules_to_save`, biases), by our names."""


def read_adapter(folder: Path) -> Adapter:
    """Reads the adapter in a folder, as peft writes it.

    Raises:
        FileNotFoundError: it has no weights.
        ValueError: a file is damaged, or it is not a LoRA.
    """
    file = adapter_file(folder)
    layers: dict[str, dict[str, Tensor]] = {}
    whole = {}
    for name, tensor in load_tensors(file).items():
        if match := MATRIX.match(our_name(name)):
            if not name.startswith(PREFIX) or ".default." in name:
                raise ValueError(
                    f"{file} calls a matrix {name!r}; peft's own files begin with {PREFIX!r} and name no adapter"
                    " ('.default'): save it with the model's save_pretrained, or rename it"
                )
            layers.setdefault(match["layer"], {})[match["part"]] = tensor
        elif not BIAS.search(name):
            whole[our_name(name)] = tensor
    return Adapter(folder, file, read_adapter_config(folder), layers, whole)


def merge_adapter(model: Any, adapter: Adapter, extra: Collection[str] = ()) -> Any:
    """Merges an adapter into a model.

    Only layers that the file has matrices for are adapted: LLaVA's lists of names ("q_proj", ...) also match the vision
    tower's layers, which were not part of the model in training.

    Args:
        model: the whole model, vision tower included; changed in place.
        adapter: from `read_adapter`; its configuration is changed.
        extra: names of weights that were added to the model beside it.

    Returns:
        The model.

    Raises:
        ValueError: the adapter is incomplete, or does not fit the model.
    """
    from peft import PeftModel  # here, since it takes seconds to import and few checkpoints need it

    check_adapter(model, adapter)
    check_saved(model, adapter, extra)
    add_weights(model, adapter.whole, adapter.file)
    restrict(adapter.config, sorted(adapter.layers))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft reads it
        try:
            tuned = PeftModel.from_pretrained(model, adapter.folder, config=adapter.config, key_mapping=MPT_NAMES)
        except UserWarning as warning:
            raise ValueError(f"{adapter.file}: {warning}") from warning
    return tuned.merge_and_unload()


def adapter_file(folder: Path) -> Path:
    """Finds the file of an adapter's weights, in peft's order."""
    files = [folder / name for name in ADAPTER_FILES if (folder / name).is_file()]
    if not files:
        raise FileNotFoundError(f"{folder} has {LORA_FILE} but no weights: expected {' or '.join(ADAPTER_FILES)}")
    return files[0]


def read_adapter_config(folder: Path) -> Any:
    """Reads the peft configuration of a LoRA adapter.

    Raises:
        ValueError: it is damaged, not a LoRA's, or a rank or alpha is no positive number.
    """
    from peft import LoraConfig

    file = folder / LORA_FILE
    if (kind := read_json(file).get("peft_type")) != "LORA":
        raise ValueError(f"{file}: peft_type is {kind!r}; allowed is 'LORA'")
    try:
        config = LoraConfig.from_pretrained(folder)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error
    for name, patterns in (("r", config.rank_pattern), ("lora_alpha", config.alpha_pattern)):
        for value in (getattr(config, name), *(patterns or {}).values()):
            if type(value) not in ((int,) if name == "r" else (int, float)) or not 0 < value < math.inf:
                kind = "integer" if name == "r" else "number"
                raise ValueError(f"{file}: {name} is {value!r}; it must be a positive {kind}")
    return config


def check_adapter(model: nn.Module, adapter: Adapter) -> None:
    """Raises ValueError unless an adapter's matrices are complete and fit the model's layers."""
    if not adapter.layers:
        raise ValueError(f"{adapter.file} holds no LoRA weights (lora_A, lora_B)")
    layers = dict(model.named_modules())
    for name, parts in adapter.layers.items():
        if name not in layers:
            raise ValueError(f"{adapter.file} adapts the layer {name!r}, which the model does not have")
        check_pair(name, layers[name], parts, rank_of(adapter.config, name), adapter.file)
    if lacking := sorted(targets(layers, adapter) - set(adapter.layers)):
        raise ValueError(
            f"{adapter.file} lacks the matrices of {len(lacking)} layers that {LORA_FILE} targets, for example "
            f"{lacking[0]!r}"
        )


def check_saved(model: nn.Module, adapter: Adapter, extra: Collection[str]) -> None:
    """Raises ValueError unless all weights of the modules that were trained in full (`modules_to_save`) are given.

    Args:
        model: the whole model; of weights that two modules share, one is enough.
        adapter: the adapter.
        extra: names of weights that are given beside it.
    """
    wanted = tuple(adapter.config.modules_to_save or ())
    saved = [name for name, _ in model.named_modules() if name.endswith(wanted) and not name.startswith(TOWER)]
    weights = dict(model.named_parameters(remove_duplicate=False))
    given = {id(weights[name]) for name in (*adapter.whole, *extra) if name in weights}
    for module in saved if wanted else ():
        for name, weight in weights.items():
            if name.startswith(f"{module}.") and id(weight) not in given:
                raise ValueError(f"{adapter.file} lacks {name!r}, which {LORA_FILE} says was trained (modules_to_save)")


def check_pair(name: str, layer: nn.Module, parts: Mapping[str, Tensor], rank: int, file: Path) -> None:
    """Raises ValueError unless a layer's two matrices exist and have its shape."""
    pair = next((pair for pair in PAIRS if set(pair) & set(parts)), PAIRS[0])
    if absent := [part for part in pair if part not in parts]:
        raise ValueError(f"{file} lacks {absent[0]} of the layer {name!r}")
    width = (getattr(layer, "in_features", None), getattr(layer, "out_features", None))
    if isinstance(layer, nn.Embedding):
        width = (layer.num_embeddings, layer.embedding_dim)
    first, second = (tuple(parts[part].shape) for part in pair)
    if first[:1] != (rank,) or second[1:2] != (rank,):
        raise ValueError(f"{file}: {name} has matrices {first} and {second}, but {LORA_FILE} gives it rank {rank}")
    if (first[1], second[0]) != width:
        raise ValueError(f"{file}: {name} has matrices {first} and {second}, the model's layer is {width}")


def targets(layers: Mapping[str, nn.Module], adapter: Adapter) -> set[str]:
    """Finds the linear layers that an adapter was trained on, in the language model and parts it has matrices for."""
    from peft.tuners.tuners_utils import check_target_module_exists

    if adapter.config.target_modules is None:
        return set()
    parts = LANGUAGE_LAYERS | {part_of(name) for name in adapter.layers}
    return {
        name
        for name, layer in layers.items()
        if isinstance(layer, nn.Linear)
        and part_of(name) in parts
        and any(check_target_module_exists(adapter.config, spelling) for spelling in spellings(name))
    }


def restrict(config: Any, modules: list[str]) -> None:
    """Limits a peft configuration to the layers of these names, each with its own rank and alpha."""
    ranks = {name: rank for name in modules if (rank := rank_of(config, name)) != config.r}
    alphas = {name: alpha for name in modules if (alpha := alpha_of(config, name)) != config.lora_alpha}
    config.rank_pattern = {re.escape(name): rank for name, rank in ranks.items()}
    config.alpha_pattern = {re.escape(name): alpha for name, alpha in alphas.items()}
    config.target_modules = set(modules)
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = config.modules_to_save = None
    config.bias = "none"  # trained biases are in `Adapter.whole`


def rank_of(config: Any, name: str) -> int:
    """Finds a layer's rank in a configuration."""
    return _by_pattern(config.rank_pattern, name, config.r)


def alpha_of(config: Any, name: str) -> float:
    """Finds a layer's alpha in a configuration."""
    return _by_pattern(config.alpha_pattern, name, config.lora_alpha)


def _by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if any(re.match(rf"(.*\.)?({pattern})$", spelling) for spelling in spellings(name)):
            return value
    return default


def spellings(name: str) -> tuple[str, str]:
    """Lists a layer's name, ours and LLaVA's, which differ in the tower."""
    return name, llava_name(name)


def part_of(name: str) -> str:
    """Finds the model's part that a layer belongs to: "model.layers", "model.vision_tower", "lm_head", ..."""
    return ".".join(name.split(".")[:2])
