"""Loads a checkpoint: tokenizer, model, image processor, context length.

What is loaded follows from the checkpoint's own files (`llava.model.loading.checkpoint`), never from its name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.model.config import ImageLanguageConfig
from llava.model.language_model.common import ImageLanguageModel
from llava.model.loading.adapters import merge_adapter, read_adapter
from llava.model.loading.base import find_base, warn_of_vocabulary
from llava.model.loading.checkpoint import Checkpoint, inspect, require_tower
from llava.model.loading.folder import NON_LORA_FILE, local_folder
from llava.model.loading.options import check_auto, choose_options
from llava.model.loading.quantization import base_quantization, check_four_bit, stored_quantization
from llava.model.loading.tokenizer import load_tokenizer
from llava.model.loading.weights import (
    TOWER,
    add_weights,
    check_complete,
    check_projector,
    extra_file,
    fill_rows,
    grow_vocabulary,
    holds_part,
    load_weights,
    read_extra_weights,
)
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.builder import build_vision_tower, override_flag
from llava.model.multimodal_encoder.pretrained import (
    drops_last_layer,
    load_image_processor,
    read_vision_config,
    set_own_processor,
    vision_config,
)

logger = logging.getLogger(__name__)

FROM_PRETRAINED = frozenset(
    ["device_mesh", "distributed_config", "kernel_config", "low_cpu_mem_usage"]
    + ["max_memory", "offload_buffers", "offload_folder", "offload_state_dict", "quantization_config", "tp_plan"]
    + ["tp_size", "trust_remote_code", "use_kernels", "use_safetensors"]
)
"""Arguments of transformers' `from_pretrained` that are passed on. Not those that name files (`subfolder`), which are
found before the call, and not `weights_only`: no pickled code is run."""


def load_pretrained_model(
    model_path: str | Path,
    model_base: str | Path | None = None,
    model_name: str | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: str | int | torch.device | Mapping[str, Any] | None = "auto",
    device: str = "cuda",
    use_flash_attn: bool = False,
    *,
    qlip: Any = None,
    torch_dtype: torch.dtype | str | None = None,
    dtype: torch.dtype | str | None = None,
    attn_implementation: str | None = None,
    cache_dir: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    **kwargs: Any,
) -> tuple[PreTrainedTokenizerBase, ImageLanguageModel, Any, int]:
    """Loads a checkpoint of LLaVA's or transformers' format: docs/MODELS.md lists them.

    Args:
        model_path: folder or hub id.
        model_base: the language model under a projector-only or LoRA checkpoint: folder or hub id.
        model_name: accepted for LLaVA's callers; not read.
        load_8bit: quantise the language model to 8 bits; tower and projector keep their dtype.
        load_4bit: quantise it to 4 bits (NF4).
        device_map: devices of the model's parts, as transformers takes it; read if `device` is "cuda".
        device: of the whole model: "cuda", "cuda:1", "cpu", "mps". Plain "cuda" leaves it to `device_map`, and means
            the CPU, with a warning, on a machine without a GPU.
        use_flash_attn: FlashAttention 2 in the language model.
        qlip: None takes the checkpoint's tower; False the CLIP tower; True QLIP; a dict of settings is laid over the
            checkpoint's; a `qlip.QLIPConfig` replaces them.
        torch_dtype: of the weights; by default float16 on a GPU, float32 on a CPU (float16 with 8 bits). `dtype` is
            an alias.
        attn_implementation: of the language model: "sdpa", "eager", "flash_attention_2".
        cache_dir: folder of downloads. It and `revision`, `token` and `local_files_only` are the hub's.
        **kwargs: of transformers' `from_pretrained`, passed on: `FROM_PRETRAINED` lists them.

    Returns:
        (tokenizer, model, image_processor, context_len); the image processor is None for a text-only model.

    Raises:
        FileNotFoundError: no such checkpoint, or it lacks a file.
        TypeError: an argument that neither this function nor `from_pretrained` has.
        ValueError: contradictory arguments, no such device, a checkpoint that is not supported, a damaged file, or
            missing weights.
    """
    check_arguments(load_8bit, load_4bit, kwargs)
    hub: dict[str, Any] = {"cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
    attention = attn_implementation or ("flash_attention_2" if use_flash_attn else None)
    dtype = torch_dtype if dtype is None else dtype
    options = choose_options(str(device), device_map, dtype, attention, load_8bit, load_4bit) | kwargs
    checkpoint = inspect(local_folder(str(model_path), revision=revision, **hub), **hub)
    check_auto(options["dtype"], checkpoint.config.dtype, checkpoint.folder)
    override_flag(checkpoint.config, qlip)
    base = find_base(checkpoint, model_path, model_base, hub)
    if stored := stored_quantization(base):
        if options.get("quantization_config") is not None:
            raise ValueError(f"{base} is quantised already (quantization_config in config.json); load it as it is")
        if dtype is None and stored.get("load_in_8bit"):
            options["dtype"] = torch.float16  # of the products of 8 bits, on a CPU as well
    if load_4bit:
        check_four_bit(checkpoint.config, options["device_map"])
    tokenizer = load_tokenizer(base)  # before the weights, so that a missing file is reported at once
    model = load_model(checkpoint, base, options, hub, tokenizer)
    finish_tower(model, checkpoint.folder, base)
    tower = model.get_vision_tower()
    processor = None if tower is None else tower.image_processor
    return tokenizer, model.eval(), processor, model.config.context_length


def check_arguments(load_8bit: bool, load_4bit: bool, kwargs: Mapping[str, Any]) -> None:
    """Checks that arguments of `load_pretrained_model` are known and do not contradict each other.

    Raises:
        TypeError: an argument that `from_pretrained` does not have, or that is not passed on.
        ValueError: two ways of quantising.
    """
    if unknown := sorted(set(kwargs) - FROM_PRETRAINED):
        raise TypeError(f"load_pretrained_model() got an unexpected keyword argument {unknown[0]!r}")
    if load_8bit and load_4bit:
        raise ValueError("load_8bit and load_4bit are both set; choose one")
    if (load_8bit or load_4bit) and kwargs.get("quantization_config") is not None:
        raise ValueError("quantization_config is set beside load_8bit or load_4bit; choose one")


def load_empty_tower(model_path: str | Path, model_base: str | Path | None = None, *, qlip: Any = None) -> VisionTower:
    """Builds a checkpoint's tower without weights, for its image processor and settings.

    Args:
        model_path: folder or hub id; like `model_base` and `qlip`, see `load_pretrained_model`.
        model_base: the language model under a projector-only or LoRA checkpoint.
        qlip: CLIP, QLIP, or settings.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: an unknown format, or a model without a tower.
    """
    checkpoint = inspect(local_folder(str(model_path)))
    config = checkpoint.config
    override_flag(config, qlip)
    folders = [checkpoint.folder]
    if checkpoint.kind != "full" and model_base is not None:
        folders.append(local_folder(str(model_base)))
        take_tower_config(config, inspect(folders[1]), read_extra_weights(checkpoint))
    require_tower(config, model_path)
    elsewhere = config.mm_vision_tower
    if is_outside := config.mm_vision_config is None:
        config.mm_vision_config = read_vision_config(str(elsewhere)).to_dict()
    with torch.device("meta"):
        tower = build_vision_tower(config)
    if is_outside:
        tower.set_image_processor(load_image_processor(str(elsewhere), tower.config))
    set_own_processor(tower, folders)
    return tower


def load_model(
    checkpoint: Checkpoint, base: Path, options: dict[str, Any], hub: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> Any:
    """Loads a checkpoint's weights, those of the language model in `base`, and adds its image tokens.

    Raises:
        FileNotFoundError: a part has no weights.
        ValueError: weights are missing, or of another shape.
    """
    if checkpoint.kind != "full":
        return load_on_base(base, checkpoint, options, hub, tokenizer)
    model, missing = load_weights(checkpoint, options, hub)
    check_complete(missing, checkpoint.folder)
    add_image_tokens(tokenizer, model)
    return model


def load_on_base(
    base: Path, checkpoint: Checkpoint, options: dict[str, Any], hub: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> Any:
    """Loads the language model in `base`, then what a projector-only or LoRA checkpoint adds.

    Raises:
        FileNotFoundError: a part has no weights.
        ValueError: weights are missing, or of another shape.
    """
    below = inspect(base, **hub)
    wanted, found = checkpoint.config.model_type, below.config.model_type
    if wanted != found:  # their weights have the same names, except for Qwen2's biases
        raise ValueError(f"{base}, given as the base model, is of type {found!r}; {checkpoint.folder} needs {wanted!r}")
    adapter = read_adapter(checkpoint.folder) if checkpoint.kind == "lora" else None
    extra = read_extra_weights(checkpoint)
    if checkpoint.kind == "lora" and below.config.has_tower and not extra_file(checkpoint).is_file():
        logger.warning(
            "%s has no %s, as the steps that training saves have none: the projector is that of %s, not one that was"
            " trained with it",
            checkpoint.folder,
            NON_LORA_FILE,
            base,
        )
    config = checkpoint.config
    if hasattr(config, "quantization_config"):  # of the base while the adapters were trained
        del config.quantization_config
    if stored := getattr(below.config, "quantization_config", None):
        config.quantization_config = base_quantization(stored)
    vocabulary, config.vocab_size = config.vocab_size, below.config.vocab_size
    take_tower_config(config, below, extra)
    padding = config.pad_token_id
    if padding is not None and padding >= config.vocab_size:  # added by training: the base has no such row
        config.pad_token_id = None
    model, missing = load_weights(Checkpoint(base, checkpoint.kind, config, below.names), options, hub)
    given = {*extra, *(adapter.whole if adapter else ())}
    check_complete(missing - given, base, checkpoint.folder)
    if vocabulary > config.vocab_size:
        warn_of_vocabulary(checkpoint.folder, vocabulary, base, config.vocab_size, given)
        grow_vocabulary(model, vocabulary)
    config.pad_token_id = padding
    if padding == len(tokenizer):  # as training added it, so that the image tokens after it have the same ids
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    known = len(tokenizer)
    add_image_tokens(tokenizer, model)
    fill_rows(model, known, len(tokenizer))
    check_projector(model, extra, extra_file(checkpoint))
    add_weights(model, extra, extra_file(checkpoint))
    return merge_adapter(model, adapter, extra) if adapter else model


def take_tower_config(config: ImageLanguageConfig, below: Checkpoint, extra: Iterable[str]) -> None:
    """Sets the configuration of the tower whose weights are in the base model or among the extra weights.

    Args:
        config: of a projector-only or LoRA checkpoint; changed in place.
        below: the base model.
        extra: names of the whole weights in the checkpoint.
    """
    if below.config.mm_vision_config is not None:
        config.mm_vision_config = config.mm_vision_config or below.config.mm_vision_config
        if drops_last_layer(vision_config(below.config.mm_vision_config)):
            config.mm_vision_select_layer = below.config.mm_vision_select_layer
    elif config.mm_vision_tower is not None and not holds_part(extra, TOWER):
        config.mm_vision_config = None  # it is loaded from mm_vision_tower


def add_image_tokens(tokenizer: PreTrainedTokenizerBase, model: ImageLanguageModel) -> None:
    """Adds the image tokens that the configuration asks for, and gives generation its padding and its end.

    transformers 5 takes the end from files only, not from a configuration's defaults: where none states it, answers
    would go on to the limit.
    """
    extra = []
    if model.config.mm_use_im_patch_token:
        extra.append(DEFAULT_IMAGE_PATCH_TOKEN)
    if model.config.mm_use_im_start_end:
        extra += [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN]
    if extra:
        tokenizer.add_tokens(extra, special_tokens=True)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        grow_vocabulary(model, len(tokenizer))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config.eos_token_id is None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id


def finish_tower(model: ImageLanguageModel, folder: Path, base: Path | None = None) -> None:
    """Gives the tower the checkpoint's image processor, else its base's, and its prior, and freezes it."""
    tower = model.get_vision_tower()
    if tower is None:
        return
    set_own_processor(tower, (folder, base or folder))
    tower.load_prior(folder)
    tower.requires_grad_(False)
