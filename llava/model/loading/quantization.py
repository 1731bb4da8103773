"""4-bit and 8-bit language models by bitsandbytes, and a check of the CPU's kernels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from llava.model.config import ImageLanguageConfig
from llava.model.loading.files import read_json

UNQUANTISED = ["model.vision_tower", "model.mm_projector", "lm_head"]
"""Modules that keep their dtype."""

INPUTS, OUTPUTS = 64, 32
"""Blocks in which bitsandbytes multiplies 4-bit weights on CPUs with AVX512-BF16."""


def quantization(
    four_bit: bool, dtype: torch.dtype | str, double_quant: bool = True, quant_type: str = "nf4"
) -> BitsAndBytesConfig:
    """Builds the settings of 4-bit or 8-bit linear layers, in the language model only.

    Args:
        four_bit: 4 bits rather than 8.
        dtype: of the products of 4-bit weights; "auto" is float16.
        double_quant: whether the constants of 4-bit weights are quantised, too.
        quant_type: of 4-bit weights: "nf4" or "fp4".
    """
    if four_bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=torch.float16 if dtype == "auto" else dtype,
            bnb_4bit_use_double_quant=double_quant,
            bnb_4bit_quant_type=quant_type,
            llm_int8_skip_modules=UNQUANTISED,
        )
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=UNQUANTISED)


def stored_quantization(folder: Path) -> dict[str, Any]:
    """Reads how the weights in a checkpoint's files are quantised, `quantization_config` in its config.json, or {}."""
    file = folder / "config.json"
    return (read_json(file).get("quantization_config") or {}) if file.is_file() else {}


def refuse_quantised(folder: Path) -> None:
    """Raises ValueError if a checkpoint's weights are quantised: their codes are not numbers to compute with."""
    if stored_quantization(folder):
        raise ValueError(
            f"{folder} is quantised (quantization_config in config.json); give the checkpoint that it was made from"
        )


def base_quantization(stored: dict[str, Any]) -> dict[str, Any]:
    """Extends a language model's quantisation settings to the whole model, whose other parts keep their dtype."""
    kept = stored.get("llm_int8_skip_modules") or []  # bitsandbytes' name, of 4 bits as well
    return stored | {"llm_int8_skip_modules": sorted({*kept, *UNQUANTISED})}


def check_four_bit(config: ImageLanguageConfig, placement: dict[str, Any] | str) -> None:
    """Raises unless this machine's kernels support the 4-bit layers of a language model.

    Args:
        config: of the language model.
        placement: its device map. Only CPUs with AVX512-BF16 multiply in blocks; all others support any width.

    Raises:
        ValueError: a layer's width is not a multiple of a block's.
    """
    if placement != {"": "cpu"} or not multiplies_in_blocks():
        return
    for name, inputs, outputs in linear_layers(config):
        if inputs % INPUTS or outputs % OUTPUTS:
            raise ValueError(
                f"this CPU (AVX512-BF16) multiplies 4-bit weights in blocks of {INPUTS} inputs and {OUTPUTS} outputs, "
                f"but {name} has {inputs} and {outputs}; load the model in 8 bits (--load-8bit) or without quantisation"
            )


def multiplies_in_blocks() -> bool:
    """Whether bitsandbytes uses its AVX512-BF16 kernels on this machine's CPU."""
    from bitsandbytes.functional import has_avx512bf16  # here, since it takes seconds to import

    return bool(has_avx512bf16())


def linear_layers(config: Any) -> Iterator[tuple[str, int, int]]:
    """Yields name, inputs and outputs of each kind of linear layer in the blocks of Llama, Mistral, Qwen2 and MPT."""
    width = config.hidden_size
    if config.model_type == "llava_mpt":
        yield from (("Wqkv", width, 3 * width), ("out_proj", width, width))
        yield from (("up_proj", width, 4 * width), ("down_proj", 4 * width, width))
        return
    inner = config.intermediate_size
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    yield from (("q_proj", width, queries), ("k_proj", width, keys), ("v_proj", width, keys))
    yield from (("o_proj", queries, width), ("gate_proj", width, inner), ("up_proj", width, inner))
    yield "down_proj", inner, width
