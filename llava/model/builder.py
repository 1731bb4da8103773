"""Loads a checkpoint: tokenizer, model, image processor, context length.

What is loaded follows from the checkpoint's own files (`llava.model.checkpoint`), never from its name.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedTokenizerBase

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.model.checkpoint import (
    NON_LORA_FILE,
    PROJECTOR_FILE,
    Checkpoint,
    inspect,
    local_folder,
)
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.llava_arch import TOWER_NAMES
from llava.model.multimodal_encoder.base import VisionTower
from llava.model.multimodal_encoder.builder import build_vision_tower, override_flag
from llava.model.multimodal_encoder.pretrained import load_image_processor, vision_config
from llava.model.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)

UNQUANTISED = ["model.vision_tower", "model.mm_projector", "lm_head"]

FROM_PRETRAINED = frozenset(
    ["device_mesh", "distributed_config", "ignore_mismatched_sizes", "kernel_config", "low_cpu_mem_usage"]
    + ["max_memory", "offload_buffers", "offload_folder", "offload_state_dict", "quantization_config", "tp_plan"]
    + ["tp_size", "trust_remote_code", "use_kernels", "use_safetensors"]
)
"""Arguments of transformers' `from_pretrained` that are handed over. Not those that name files (`subfolder`), which are
found before it is called, and not `weights_only`: no pickled code is run."""


def load_pretrained_model(
    model_path: str | Path,
    model_base: str | Path | None = None,
    model_name: str | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: str | dict[str, Any] | None = "auto",
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
) -> tuple[PreTrainedTokenizerBase, LlavaLlamaForCausalLM, Any, int]:
    """Loads a LLaVA v1.5 checkpoint of LLaVA's or transformers' format.

    Args:
        model_path: folder or hub id.
        model_base: the language model under a projector-only or LoRA checkpoint: folder or hub id.
        model_name: accepted for LLaVA's callers; not read.
        load_8bit: quantise the language model to 8 bits; tower and projector stay as they are.
        load_4bit: quantise it to 4 bits (NF4).
        device_map: where the parts go, as transformers takes it; read where `device` is "cuda".
        device: "cuda", "cuda:1", "cpu", "mps"; everything goes there. Plain "cuda" is left to `device_map`, and means
            the CPU on a machine without a GPU.
        use_flash_attn: FlashAttention 2 in the language model.
        qlip: None is what the checkpoint says; False the CLIP tower; True QLIP; a dict of settings is laid over the
            checkpoint's; a `qlip.QLIPConfig` replaces them.
        torch_dtype: of the weights; by default float16 on a GPU, float32 on a CPU (float16 with 8 bits). `dtype` is
            the same.
        attn_implementation: of the language model: "sdpa", "eager", "flash_attention_2".
        cache_dir: where downloads lie. Also `revision`, `token` and `local_files_only` go to the hub.
        **kwargs: of transformers' `from_pretrained`, handed over as they are: `FROM_PRETRAINED` lists them.

    Returns:
        (tokenizer, model, image_processor, context_len); the image processor is None for a text-only model.

    Raises:
        FileNotFoundError: no such checkpoint.
        TypeError: an argument that neither this function nor `from_pretrained` has.
        ValueError: contradictory arguments, an unknown format, or missing weights.
    """
    if unknown := sorted(set(kwargs) - FROM_PRETRAINED):
        raise TypeError(f"load_pretrained_model() got an unexpected keyword argument {unknown[0]!r}")
    if load_8bit and load_4bit:
        raise ValueError("load_8bit and load_4bit are both set; choose one")
    if (load_8bit or load_4bit) and kwargs.get("quantization_config") is not None:
        raise ValueError("quantization_config is set beside load_8bit or load_4bit; choose one")
    hub = {"cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
    placement = choose_placement(device, "auto" if device_map is None else device_map)
    # Not where weights on the CPU are on their way to a GPU, nor with 8 bits, whose products are in float16.
    stays = device == "cpu" or not torch.cuda.is_available()
    weights_dtype = choose_dtype(dtype if dtype is not None else torch_dtype, placement, stays and not load_8bit)
    options: dict[str, Any] = {"dtype": weights_dtype, "device_map": placement, **kwargs}
    if use_flash_attn or attn_implementation:
        options["attn_implementation"] = attn_implementation or "flash_attention_2"
    if load_8bit or load_4bit:
        options["quantization_config"] = quantization(load_4bit, weights_dtype)

    checkpoint = inspect(local_folder(str(model_path), revision=revision, **hub))
    override_flag(checkpoint.config, qlip)
    if checkpoint.kind != "full" and model_base is None:
        raise ValueError(
            f"{model_path} is a {checkpoint.kind} checkpoint: it needs its language model; give model_base"
        )
    base = checkpoint.folder if checkpoint.kind == "full" else local_folder(str(model_base), **hub)
    tokenizer = load_tokenizer(base)  # before the weights, so that a missing file shows at once
    if checkpoint.kind == "full":
        model = load_weights(checkpoint, options, hub)
    else:
        model = load_on_base(base, checkpoint, options, hub)
    add_image_tokens(tokenizer, model)
    finish_tower(model, checkpoint.folder)
    tower = model.get_vision_tower()
    processor = None if tower is None else tower.image_processor
    return tokenizer, model.eval(), processor, model.config.context_length


def load_empty_tower(model_path: str | Path, model_base: str | Path | None = None, *, qlip: Any = None) -> VisionTower:
    """A checkpoint's tower without weights, for what its image processor and settings tell.

    Args:
        model_path: folder or hub id. This, `model_base` and `qlip` are as `load_pretrained_model` takes them.
        model_base: the language model under a projector-only or LoRA checkpoint.
        qlip: CLIP, QLIP, or settings.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: an unknown format, or a model without a tower.
    """
    checkpoint = inspect(local_folder(str(model_path)))
    config = checkpoint.config
    override_flag(config, qlip)
    if config.mm_vision_config is None and model_base is not None:
        config.mm_vision_config = inspect(local_folder(str(model_base))).config.mm_vision_config
    elsewhere = config.mm_vision_tower
    if config.mm_vision_config is None and elsewhere is None:
        raise ValueError(f"{model_path} has no vision tower")
    if is_outside := config.mm_vision_config is None:
        config.mm_vision_config = vision_config(AutoConfig.from_pretrained(elsewhere)).to_dict()
    with torch.device("meta"):
        tower = build_vision_tower(config)
    if is_outside:
        tower.set_image_processor(load_image_processor(str(elsewhere), tower.config))
    if (checkpoint.folder / "preprocessor_config.json").is_file():
        tower.set_image_processor(load_image_processor(str(checkpoint.folder), tower.config))
    return tower


def choose_placement(device: str, device_map: str | dict[str, Any]) -> dict[str, Any] | str:
    """The device map that `device` and `device_map` mean together on this machine."""
    if device != "cuda":
        place = torch.device(device)
        if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device is {device!r}, but this machine has {torch.cuda.device_count()} CUDA devices")
        if place.type == "mps" and not torch.backends.mps.is_available():
            raise ValueError("device is 'mps', but this machine has no MPS device")
        return {"": device}
    if device_map == "auto" and not torch.cuda.is_available():
        logger.info("no CUDA device here: running on the CPU")
        return {"": "cpu"}
    if isinstance(device_map, str) and device_map not in ("auto", "balanced", "balanced_low_0", "sequential"):
        return choose_placement(device_map, "auto") if device_map != "cuda" else {"": "cuda:0"}
    return device_map


def choose_dtype(dtype: torch.dtype | str | None, placement: dict[str, Any] | str, widen: bool) -> torch.dtype | str:
    """The caller's choice, else float16; float32 on the CPU if `widen`.

    Raises:
        ValueError: no floating-point dtype.
    """
    if dtype is None:
        return torch.float32 if widen and placement == {"": "cpu"} else torch.float16
    if dtype == "auto":
        return dtype
    chosen = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise ValueError(f"dtype is {dtype!r}; allowed are 'float32', 'float16', 'bfloat16' and 'auto'")
    return chosen


def quantization(four_bit: bool, dtype: torch.dtype | str) -> BitsAndBytesConfig:
    """bitsandbytes' 4-bit (NF4, doubly quantised) or 8-bit linear layers, in the language model only."""
    if four_bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=torch.float16 if dtype == "auto" else dtype,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_quant_type="nf4",
            llm_int8_skip_modules=UNQUANTISED,
        )
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=UNQUANTISED)


def load_weights(checkpoint: Checkpoint, options: dict[str, Any], hub: dict[str, Any]) -> LlavaLlamaForCausalLM:
    """Reads a checkpoint's weights into a model of its configuration, and the tower from elsewhere if it is there.

    Raises:
        ValueError: weights are missing that nothing else provides.
    """
    model, report = LlavaLlamaForCausalLM.from_pretrained(
        checkpoint.folder,
        config=checkpoint.config,
        key_mapping=checkpoint.names,
        output_loading_info=True,
        **options,
    )
    missing = [name for name in report["missing_keys"] if checkpoint.kind == "full" or "mm_projector" not in name]
    if missing:
        raise ValueError(
            f"{checkpoint.folder} lacks {len(missing)} weights of the model, for example {sorted(missing)[0]!r}"
        )
    if (tower := model.get_vision_tower()) is not None:
        tower.load_model(dtype=model.dtype, device=model.device, **hub)
    return model


def load_on_base(base: Path, checkpoint: Checkpoint, options: dict[str, Any], hub: dict[str, Any]) -> Any:
    """Loads the language model in `base`, then what a projector-only or LoRA checkpoint adds."""
    below = inspect(base)
    config = checkpoint.config
    vocabulary, config.vocab_size = config.vocab_size, below.config.vocab_size
    config.mm_vision_config = config.mm_vision_config or below.config.mm_vision_config
    model = load_weights(Checkpoint(base, checkpoint.kind, config, below.names), options, hub)
    if vocabulary > config.vocab_size:
        model.resize_token_embeddings(vocabulary)
    if checkpoint.kind == "projector":
        add_weights(model, checkpoint.folder / PROJECTOR_FILE)
        return model
    if (extra := checkpoint.folder / NON_LORA_FILE).is_file():
        add_weights(model, extra)
    from peft import PeftModel  # here, since it takes seconds to import and few checkpoints need it

    return PeftModel.from_pretrained(model, checkpoint.folder).merge_and_unload()


def add_weights(model: LlavaLlamaForCausalLM, file: Path) -> None:
    """Copies the tensors of a .bin file over the model's.

    Raises:
        ValueError: a tensor has no place in the model, or the projector is not in the file.
    """
    state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    own = model.state_dict()
    named = {our_name(name): tensor for name, tensor in state.items()}
    if unknown := sorted(set(named) - set(own)):
        raise ValueError(f"{file} holds {unknown[0]!r}, which the model has no place for")
    if absent := sorted(name for name in own if "mm_projector" in name and name not in named):
        raise ValueError(f"{file} lacks the projector's {absent[0]!r}")
    with torch.no_grad():
        for name, tensor in named.items():
            if own[name].shape != tensor.shape:
                raise ValueError(f"{file}: {name} is {tuple(tensor.shape)}, the model's {tuple(own[name].shape)}")
            own[name].copy_(tensor)


def our_name(name: str) -> str:
    """Strips the prefixes that peft and LLaVA's training leave on a parameter's name."""
    name = re.sub(r"^(?:base_model\.model\.)?(?:model\.)?(?=(?:model|lm_head)\.)", "", name)
    for pattern, replacement in TOWER_NAMES.items():
        name = re.sub(pattern, replacement, name)
    return name


def add_image_tokens(tokenizer: PreTrainedTokenizerBase, model: LlavaLlamaForCausalLM) -> None:
    """Adds the image tokens that the configuration asks for, and gives generation its padding token."""
    extra = []
    if model.config.mm_use_im_patch_token:
        extra.append(DEFAULT_IMAGE_PATCH_TOKEN)
    if model.config.mm_use_im_start_end:
        extra += [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN]
    if extra:
        tokenizer.add_tokens(extra, special_tokens=True)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    model.generation_config.pad_token_id = tokenizer.pad_token_id


def finish_tower(model: LlavaLlamaForCausalLM, folder: Path) -> None:
    """Gives the tower the checkpoint's image processor and prior, and freezes it."""
    tower = model.get_vision_tower()
    if tower is None:
        return
    if (folder / "preprocessor_config.json").is_file():
        tower.set_image_processor(load_image_processor(str(folder), tower.config))
    tower.load_prior(folder)
    tower.requires_grad_(False)
