"""Loads weights from files into models. A weight that no file holds is an error: none keeps random values."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava.model.config import ImageLanguageConfig, LlavaConfig, LlavaMistralConfig, LlavaMptConfig, LlavaQwenConfig
from llava.model.language_model.common import ImageLanguageModel
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.language_model.llava_mistral import LlavaMistralForCausalLM
from llava.model.language_model.llava_mpt import LlavaMptForCausalLM
from llava.model.language_model.llava_qwen import LlavaQwenForCausalLM
from llava.model.llava_arch import TOWER_NAMES
from llava.model.loading.checkpoint import Checkpoint
from llava.model.loading.files import check_weights, load_tensors
from llava.model.loading.folder import NON_LORA_FILE, PROJECTOR_FILE
from llava.model.loading.strict import read_pretrained
from llava.model.loading.transformers_format import TOWER_PREFIX
from llava.model.sharding import whole_parameters

logger = logging.getLogger(__name__)

QUANTISED = (".SCB", ".absmax", ".quant_map")
"""Endings of what bitsandbytes saves beside its codes; without it the codes would be read as weights."""
PROJECTOR = "model.mm_projector."
TOWER = "model.vision_tower."

MODELS: dict[type[ImageLanguageConfig], type[ImageLanguageModel]] = {
    LlavaConfig: LlavaLlamaForCausalLM,
    LlavaMistralConfig: LlavaMistralForCausalLM,
    LlavaMptConfig: LlavaMptForCausalLM,
    LlavaQwenConfig: LlavaQwenForCausalLM,
}
"""The class of the model that a configuration describes."""


def load_weights(
    checkpoint: Checkpoint, options: dict[str, Any], hub: dict[str, Any], tower_dtype: torch.dtype | None = None
) -> tuple[ImageLanguageModel, set[str]]:
    """Loads a checkpoint's weights into a model of its configuration, and the tower from its own checkpoint if needed.

    Args:
        checkpoint: see `inspect`.
        options: of `from_pretrained`.
        hub: where to look for a tower: `cache_dir`, `token`, ...
        tower_dtype: of a tower from its own checkpoint; by default the model's.

    Returns:
        The model, and the names of its weights that no file holds.

    Raises:
        FileNotFoundError: there are no weights, or no tower.
        ValueError: a file is damaged, or holds a weight of another shape; or the device map offloads the tower.
    """
    check_weights(checkpoint.folder)
    loaded = read_pretrained(
        MODELS[type(checkpoint.config)],
        checkpoint.folder,
        config=checkpoint.config,
        key_mapping=checkpoint.names,
        inspected=True,
        **options,
    )
    if codes := sorted(name for name in loaded.unread if name.endswith(QUANTISED)):
        raise ValueError(
            f"{checkpoint.folder} holds quantised weights ({codes[0]!r}), but its config.json has no"
            " quantization_config; give the one that they were saved with"
        )
    if loaded.unread:
        logger.warning(
            "%s holds %d tensors that the model has no place for, for example %r; they are not read",
            checkpoint.folder,
            len(loaded.unread),
            min(loaded.unread),
        )
    if (tower := loaded.model.get_vision_tower()) is not None:
        if any(parameter.is_meta for parameter in tower.parameters()):  # it reads weights outside of modules
            raise ValueError("the vision tower is offloaded; give it a device in device_map (it is small)")
        tower.load_model(dtype=tower_dtype or loaded.model.dtype, device=loaded.model.device, **hub)
    return loaded.model, loaded.missing


def check_complete(missing: set[str], *places: Path) -> None:
    """Raises unless all of a model's weights were found.

    Args:
        missing: names of the weights that were not.
        *places: files or folders that were searched.

    Raises:
        ValueError: there are some.
    """
    if not missing:
        return
    lacking = f"neither {' nor '.join(map(str, places))} holds" if len(places) > 1 else f"{places[0]} lacks"
    if holds_part(missing, PROJECTOR):
        example = min(name for name in missing if name.startswith(PROJECTOR))
        way_out = "; give a whole LLaVA checkpoint as the base model (--model-base)" if len(places) > 1 else ""
        raise ValueError(f"{lacking} the projector, {PROJECTOR}* (for example {example!r}){way_out}")
    raise ValueError(f"{lacking} {len(missing)} weights of the model, for example {min(missing)!r}")


def extra_file(checkpoint: Checkpoint) -> Path:
    """Builds the path of the full weights in a projector or LoRA checkpoint."""
    return checkpoint.folder / (PROJECTOR_FILE if checkpoint.kind == "projector" else NON_LORA_FILE)


def read_extra_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Reads the tensors in `extra_file`, by our names; empty if a LoRA checkpoint has no such file.

    Raises:
        ValueError: the file is damaged, or a projector's holds none.
    """
    file = extra_file(checkpoint)
    weights = {our_name(name): tensor for name, tensor in load_tensors(file).items()} if file.is_file() else {}
    if checkpoint.kind == "projector" and not holds_part(weights, PROJECTOR):
        raise ValueError(f"{file} does not hold the projector, {PROJECTOR}*")
    return weights


def holds_part(weights: Iterable[str], prefix: str) -> bool:
    """Whether any weight's name begins with `prefix`."""
    return any(name.startswith(prefix) for name in weights)


def check_projector(model: ImageLanguageModel, weights: Iterable[str], source: Path) -> None:
    """Checks that the weights contain the whole projector or none of it.

    Raises:
        ValueError: they hold a part of it.
    """
    projector = {name for name in model.state_dict() if name.startswith(PROJECTOR)}
    if (absent := projector - set(weights)) and absent != projector:
        raise ValueError(f"{source} holds a part of the projector, {PROJECTOR}*: it lacks {min(absent)!r}")


def add_weights(model: ImageLanguageModel, weights: Mapping[str, Tensor], source: Path) -> None:
    """Copies tensors into the model.

    Args:
        model: changed in place.
        weights: by our names.
        source: their file, for errors.

    Raises:
        ValueError: the model has no such weight, or one of another shape, quantised or offloaded.
    """
    own = model.state_dict()
    if quantised := sorted(name for name in set(weights) & set(own) if not own[name].is_floating_point()):
        raise ValueError(
            f"{source} holds {quantised[0]!r}, which is quantised; load it without --load-8bit, --load-4bit"
        )
    if unknown := sorted(set(weights) - set(own)):
        raise ValueError(f"{source} holds {unknown[0]!r}, which the model has no place for")
    with torch.no_grad():
        for name, tensor in weights.items():
            if own[name].shape != tensor.shape:
                raise ValueError(f"{source}: {name} is {tuple(tensor.shape)}, the model's {tuple(own[name].shape)}")
            if own[name].is_meta:  # a copy would be lost
                raise ValueError(f"{source} holds {name}, which device_map offloads; give the model more memory")
            own[name].copy_(tensor)


def our_name(name: str) -> str:
    """Strips the prefixes that peft and LLaVA's training leave on a parameter's name; MPT's trunk gets our name."""
    name = re.sub(r"^(?:base_model\.model\.)?(?:model\.)?transformer\.", "model.", name)
    name = re.sub(r"^(?:base_model\.model\.)?(?:model\.)?(?=(?:model|lm_head)\.)", "", name)
    name = re.sub(r"\.(?:base_layer|modules_to_save\.default)(?=\.)", "", name)
    for pattern, replacement in TOWER_NAMES.items():
        name = re.sub(pattern, replacement, name)
    return name


def llava_name(name: str) -> str:
    """Converts a parameter's name to LLaVA's: its tower's weights have one more prefix than in today's transformers."""
    return name.replace(TOWER_PREFIX, f"{TOWER_PREFIX}vision_model.")


def grow_vocabulary(model: ImageLanguageModel, rows: int) -> None:
    """Adds rows to the embeddings and the output layer, each the mean of the old rows, as LLaVA's training does.

    So an added token that was never trained has the mean of the others' logits, never the largest.
    """
    tables = [layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    with whole_parameters(*tables):
        old, means = len(tables[0]), [table.detach().float().mean(0) for table in tables]
    model.resize_token_embeddings(rows, mean_resizing=False)
    tables = [layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    with torch.no_grad(), whole_parameters(*tables):
        for table, mean in zip(tables, means, strict=True):
            table[old:] = mean.to(table)


def fill_rows(model: ImageLanguageModel, start: int, end: int) -> None:
    """Gives the tokens from `start` to `end` the rows that training begins with: the mean of the rows before.

    The base may have rows to spare for them, with other values.
    """
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            if start < end and not layer.weight.is_meta:
                layer.weight[start:end] = layer.weight[:start].float().mean(0).to(layer.weight)
